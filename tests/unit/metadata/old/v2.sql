BEGIN TRANSACTION;
CREATE TABLE blobs (
    namespace TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    root INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;
INSERT INTO "blobs" VALUES('test','sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881',1,X'7B7D',1795325234354233742,1795325234354233742,0);
INSERT INTO "blobs" VALUES('test','sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',4,X'7B22636F6E7461696E6572642E696F2F67632E636F6E642E736E617073686F742E6D656D6F7279223A227573656461743C3234687C6C61796572227D',1,1,0);
CREATE TABLE containers (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (namespace, id)
);
INSERT INTO "containers" VALUES('test','web',X'0A03776562120B0A047469657212037765621A03696D6722170A15696F2E636F6E7461696E6572642E72756E632E76322A3C0A3674797065732E636F6E7461696E6572642E696F2F6F70656E636F6E7461696E6572732F72756E74696D652D737065632F312F5370656312027B7D420C08B2FA89D80610E1CAD3A7014A0C08B2FA89D80610E1CAD3A701');
CREATE TABLE images (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    annotations BLOB NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
INSERT INTO "images" VALUES('test','docker.io/library/a:1','type/manifest','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',7,X'7B226E223A2231227D',X'7B7D',1795325234352059027,1795325234352059027,NULL);
CREATE TABLE ingests (
    namespace TEXT NOT NULL,
    ref TEXT NOT NULL,
    file INTEGER NOT NULL,
    total INTEGER NOT NULL,
    expected TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (namespace, ref)
) WITHOUT ROWID;
CREATE TABLE leases (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    flat INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;
INSERT INTO "leases" VALUES('test','l',X'7B2261223A2262227D',1795325234354655480,NULL,0);
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    labels BLOB NOT NULL
) WITHOUT ROWID;
INSERT INTO "namespaces" VALUES('test',X'7B226B223A2276227D');
CREATE TABLE refs (
    namespace TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    to_kind TEXT NOT NULL,
    to_key TEXT NOT NULL,
    owner_kind TEXT NOT NULL,
    owner_key TEXT NOT NULL,
    flat INTEGER NOT NULL,
    PRIMARY KEY (namespace, kind, key, to_kind, to_key, owner_kind, owner_key)
) WITHOUT ROWID;
INSERT INTO "refs" VALUES('test','images','docker.io/library/a:1','content','sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','images','docker.io/library/a:1',1);
INSERT INTO "refs" VALUES('test','leases','l','content','sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881','leases','l',1);
CREATE TABLE removals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    key TEXT NOT NULL
);
CREATE TABLE sandboxes (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (namespace, id)
);
INSERT INTO "sandboxes" VALUES('test','pod',X'0A03706F6412002A003200');
CREATE TABLE sequences (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL
) WITHOUT ROWID
;
INSERT INTO "sequences" VALUES('backend',4097);
CREATE TABLE snapshots (
    namespace TEXT NOT NULL,
    snapshotter TEXT NOT NULL,
    key TEXT NOT NULL,
    backend TEXT NOT NULL,
    parent TEXT NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    root INTEGER NOT NULL,
    PRIMARY KEY (namespace, snapshotter, key)
) WITHOUT ROWID;
INSERT INTO "snapshots" VALUES('test','memory','s','test/2/s','',X'7B22636F6E7461696E6572642E696F2F67632E726F6F74223A2231227D',1795325234355780313,1795325234355780313,1);
CREATE INDEX blobs_by_digest ON blobs (digest);
CREATE INDEX ingests_by_expected ON ingests (expected);
CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);
CREATE INDEX snapshots_by_backend ON snapshots (snapshotter, backend);
CREATE INDEX refs_by_owner ON refs (namespace, owner_kind, owner_key);
COMMIT;
PRAGMA user_version = 2;
