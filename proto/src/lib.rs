//! The wire of Attune, compiled from `proto/attune/**.proto`. The comments on every message and
//! field stand in those files.
#![forbid(unsafe_code)]

/// Generator and reward worker, once per decoding step.
pub mod reward {
    /// Package `attune.reward.v1`.
    #[allow(clippy::large_enum_variant)] // generated: one frame in many is an `Open`
    pub mod v1 {
        tonic::include_proto!("attune.reward.v1");
    }
}

/// Clients and the generator.
pub mod generator {
    /// Package `attune.generator.v1`.
    pub mod v1 {
        tonic::include_proto!("attune.generator.v1");
    }
}

/// People's profiles.
pub mod profile {
    /// Package `attune.profile.v1`.
    pub mod v1 {
        tonic::include_proto!("attune.profile.v1");
    }
}

/// The encoded `FileDescriptorSet` of all three packages, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of the pair's protocol; both sides name theirs in `Describe`.
pub const PROTOCOL_VERSION: u32 = 1;

/// The method whose worker must have the base model's own weights: both sides know it by this name.
pub const LINEAR_ALIGNMENT: &str = "linear-alignment";
