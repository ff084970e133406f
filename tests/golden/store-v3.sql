PRAGMA application_id = 1397706305;
PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE arms (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, version INTEGER NOT NULL, time REAL NOT NULL, sha256 BLOB NOT NULL,
        names BLOB NOT NULL, vectors BLOB NOT NULL, costs BLOB NOT NULL);
INSERT INTO "arms" VALUES(1,1,1,1000.0,X'3656A16E79CA68821F2A11A35F894557F0D5FB708DBB235CA68FAFCB4B7318AD',X'5B2261222C202262225D',X'766563746F7273',X'636F737473');
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "counters" VALUES('session',1);
CREATE TABLE decisions (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, id INTEGER NOT NULL, time REAL NOT NULL, x BLOB NOT NULL, arm INTEGER NOT NULL,
        arm_set INTEGER NOT NULL, candidates BLOB, propensity REAL NOT NULL, proposals BLOB NOT NULL, source TEXT);
INSERT INTO "decisions" VALUES(1,1,1,1001.0,X'0000803F000000C00000003F00005040',1,1,X'0000000002000000',0.75,X'6775617264','s');
INSERT INTO "decisions" VALUES(2,1,2,1002.0,X'0000803F000000C00000003F00005040',2,1,X'0000000002000000',0.75,X'6775617264',NULL);
CREATE TABLE feedback (
        ns INTEGER NOT NULL, seq INTEGER NOT NULL, id INTEGER NOT NULL, reward REAL NOT NULL, time REAL NOT NULL, source TEXT,
        PRIMARY KEY (ns, seq)) WITHOUT ROWID;
INSERT INTO "feedback" VALUES(1,1,1,0.5,2001.0,NULL);
CREATE TABLE namespaces (
        ns INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL DEFAULT 0,
        last_arm_set INTEGER NOT NULL DEFAULT 0, arm_set INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0);
INSERT INTO "namespaces" VALUES(1,'default',1,1,1,1353);
CREATE TABLE state (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL, applied_seq INTEGER NOT NULL,
        sha256 BLOB NOT NULL, blob BLOB NOT NULL);
INSERT INTO "state" VALUES(2,1,'adapter',2,1,X'1F6B816353B1CC715AD8D73DE16DFC010AE347F4884E638DE213B096597DC079',X'77656967687473');
INSERT INTO "state" VALUES(3,1,'graph',1,0,X'9B9B0A95A8474D0CE168574D15CB133A370D58D4C005C0516E24FB0AAE6F4C84',X'6E6F646573');
CREATE TABLE trajectories (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, id INTEGER NOT NULL, time REAL NOT NULL, payload BLOB NOT NULL, quality REAL);
INSERT INTO "trajectories" VALUES(1,1,1,1001.0,X'7374657073',0.5);
CREATE TABLE vectors (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, id INTEGER NOT NULL, crc INTEGER NOT NULL,
        vector BLOB NOT NULL);
INSERT INTO "vectors" VALUES(1,1,'graph',5,1018350795,X'66697665');
INSERT INTO "vectors" VALUES(2,1,'graph',2,298486374,X'74776F');
CREATE TABLE versions (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, parent INTEGER, time REAL NOT NULL,
        verdict TEXT NOT NULL, reason TEXT NOT NULL, about TEXT NOT NULL, published INTEGER NOT NULL DEFAULT 0, sha256 BLOB NOT NULL,
        factors BLOB NOT NULL);
INSERT INTO "versions" VALUES(1,1,'adapter',1,NULL,1000.0,'accept','because','{}',0,X'DE8DA3BBCE789CD20D3C7652DCF69D4F8E1ABE5B8B61676555E1540949E76DC7',X'666163746F7273');
INSERT INTO "versions" VALUES(2,1,'adapter',2,NULL,1000.0,'accept','because','{}',1,X'6BD337D38E30EC4BF7C8B3ABBF70C7C5301BBA02CE087DFB307AB8DA01AFE8F0',X'666163746F7273');
CREATE UNIQUE INDEX decisions_id ON decisions (ns, id);
CREATE INDEX decisions_time ON decisions (ns, time);
CREATE INDEX decisions_arm_set ON decisions (ns, arm_set);
CREATE INDEX decisions_source ON decisions (ns, source) WHERE source IS NOT NULL;
CREATE INDEX feedback_id ON feedback (ns, id);
CREATE INDEX feedback_time ON feedback (ns, time);
CREATE INDEX feedback_source ON feedback (ns, source) WHERE source IS NOT NULL;
CREATE UNIQUE INDEX trajectories_id ON trajectories (ns, id);
CREATE INDEX trajectories_time ON trajectories (ns, time);
CREATE UNIQUE INDEX state_name ON state (ns, name, generation);
CREATE UNIQUE INDEX arms_version ON arms (ns, version);
CREATE UNIQUE INDEX arms_content ON arms (ns, sha256);
CREATE TRIGGER decisions_added AFTER INSERT ON decisions BEGIN UPDATE namespaces SET bytes = bytes + (length(new.x) + coalesce(length(new.candidates), 0) + length(new.proposals) + coalesce(length(new.source), 0) + 160) WHERE ns = new.ns; END;
CREATE TRIGGER decisions_removed AFTER DELETE ON decisions BEGIN UPDATE namespaces SET bytes = bytes - (length(old.x) + coalesce(length(old.candidates), 0) + length(old.proposals) + coalesce(length(old.source), 0) + 160) WHERE ns = old.ns; END;
CREATE TRIGGER decisions_changed AFTER UPDATE ON decisions BEGIN UPDATE namespaces SET bytes = bytes - (length(old.x) + coalesce(length(old.candidates), 0) + length(old.proposals) + coalesce(length(old.source), 0) + 160) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (length(new.x) + coalesce(length(new.candidates), 0) + length(new.proposals) + coalesce(length(new.source), 0) + 160) WHERE ns = new.ns; END;
CREATE TRIGGER feedback_added AFTER INSERT ON feedback BEGIN UPDATE namespaces SET bytes = bytes + (coalesce(length(new.source), 0) + 96) WHERE ns = new.ns; END;
CREATE TRIGGER feedback_removed AFTER DELETE ON feedback BEGIN UPDATE namespaces SET bytes = bytes - (coalesce(length(old.source), 0) + 96) WHERE ns = old.ns; END;
CREATE TRIGGER feedback_changed AFTER UPDATE ON feedback BEGIN UPDATE namespaces SET bytes = bytes - (coalesce(length(old.source), 0) + 96) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (coalesce(length(new.source), 0) + 96) WHERE ns = new.ns; END;
CREATE TRIGGER trajectories_added AFTER INSERT ON trajectories BEGIN UPDATE namespaces SET bytes = bytes + (length(new.payload) + 64) WHERE ns = new.ns; END;
CREATE TRIGGER trajectories_removed AFTER DELETE ON trajectories BEGIN UPDATE namespaces SET bytes = bytes - (length(old.payload) + 64) WHERE ns = old.ns; END;
CREATE TRIGGER trajectories_changed AFTER UPDATE ON trajectories BEGIN UPDATE namespaces SET bytes = bytes - (length(old.payload) + 64) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (length(new.payload) + 64) WHERE ns = new.ns; END;
CREATE TRIGGER state_added AFTER INSERT ON state BEGIN UPDATE namespaces SET bytes = bytes + (length(new.blob) + 96) WHERE ns = new.ns; END;
CREATE TRIGGER state_removed AFTER DELETE ON state BEGIN UPDATE namespaces SET bytes = bytes - (length(old.blob) + 96) WHERE ns = old.ns; END;
CREATE TRIGGER state_changed AFTER UPDATE ON state BEGIN UPDATE namespaces SET bytes = bytes - (length(old.blob) + 96) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (length(new.blob) + 96) WHERE ns = new.ns; END;
CREATE TRIGGER arms_added AFTER INSERT ON arms BEGIN UPDATE namespaces SET bytes = bytes + (length(new.names) + length(new.vectors) + length(new.costs) + 96) WHERE ns = new.ns; END;
CREATE TRIGGER arms_removed AFTER DELETE ON arms BEGIN UPDATE namespaces SET bytes = bytes - (length(old.names) + length(old.vectors) + length(old.costs) + 96) WHERE ns = old.ns; END;
CREATE TRIGGER arms_changed AFTER UPDATE ON arms BEGIN UPDATE namespaces SET bytes = bytes - (length(old.names) + length(old.vectors) + length(old.costs) + 96) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (length(new.names) + length(new.vectors) + length(new.costs) + 96) WHERE ns = new.ns; END;
CREATE UNIQUE INDEX versions_number ON versions (ns, name, number);
CREATE UNIQUE INDEX versions_published ON versions (ns, name) WHERE published;
CREATE TRIGGER versions_added AFTER INSERT ON versions BEGIN UPDATE namespaces SET bytes = bytes + (length(new.factors) + length(new.reason) + length(new.about) + 160) WHERE ns = new.ns; END;
CREATE TRIGGER versions_removed AFTER DELETE ON versions BEGIN UPDATE namespaces SET bytes = bytes - (length(old.factors) + length(old.reason) + length(old.about) + 160) WHERE ns = old.ns; END;
CREATE TRIGGER versions_changed AFTER UPDATE ON versions BEGIN UPDATE namespaces SET bytes = bytes - (length(old.factors) + length(old.reason) + length(old.about) + 160) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (length(new.factors) + length(new.reason) + length(new.about) + 160) WHERE ns = new.ns; END;
CREATE UNIQUE INDEX vectors_id ON vectors (ns, name, id);
CREATE TRIGGER vectors_added AFTER INSERT ON vectors BEGIN UPDATE namespaces SET bytes = bytes + (length(new.vector) + 64) WHERE ns = new.ns; END;
CREATE TRIGGER vectors_removed AFTER DELETE ON vectors BEGIN UPDATE namespaces SET bytes = bytes - (length(old.vector) + 64) WHERE ns = old.ns; END;
CREATE TRIGGER vectors_changed AFTER UPDATE ON vectors BEGIN UPDATE namespaces SET bytes = bytes - (length(old.vector) + 64) WHERE ns = old.ns; UPDATE namespaces SET bytes = bytes + (length(new.vector) + 64) WHERE ns = new.ns; END;
COMMIT;
