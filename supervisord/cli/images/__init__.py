"""Images on the client's side: content streams, manifests, unpacking, import and export."""
