from tests.poller import poller as poller
