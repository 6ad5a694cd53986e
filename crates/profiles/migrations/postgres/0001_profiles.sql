-- A profile is found by its owner and its name, in the order of their bytes, as in SQLite. Times are microseconds since
-- 1970; vectors are f32, little endian.
CREATE TABLE profiles (
    owner TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL,
    text TEXT,
    weights BYTEA,
    latent BYTEA,
    reference TEXT,
    model_id TEXT NOT NULL,
    model_revision TEXT NOT NULL,
    fit BYTEA,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (owner, name),
    CHECK (weights IS NULL OR latent IS NULL)
);

-- What is kept with the owner's consent, to fit a profile again.
CREATE TABLE feedback (
    owner TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    answers BIGINT NOT NULL,
    items BYTEA NOT NULL,
    PRIMARY KEY (owner, name),
    FOREIGN KEY (owner, name) REFERENCES profiles (owner, name) ON DELETE CASCADE
);
