//! The generator: decodes every token with the base model.
