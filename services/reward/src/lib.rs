//! The reward worker: scores candidate tokens with a personalised reward model.
