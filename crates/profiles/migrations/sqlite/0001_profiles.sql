-- A profile is found by its owner and its name. Times are microseconds since 1970; vectors are f32, little endian.
CREATE TABLE profiles (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    text TEXT,
    weights BLOB,
    latent BLOB,
    reference TEXT,
    model_id TEXT NOT NULL,
    model_revision TEXT NOT NULL,
    fit BLOB,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (owner, name),
    CHECK (weights IS NULL OR latent IS NULL)
) STRICT;

-- What is kept with the owner's consent, to fit a profile again.
CREATE TABLE feedback (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    answers INTEGER NOT NULL,
    items BLOB NOT NULL,
    PRIMARY KEY (owner, name),
    FOREIGN KEY (owner, name) REFERENCES profiles (owner, name) ON DELETE CASCADE
) STRICT;
