//! The kernels' sources, and what of them a card needs.

/// How the tensors that a kernel reads are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Whether our kernels multiply it by tensor cores.
    pub(super) fn has_tensor_cores(self) -> bool {
        self != Self::F32
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn only(self) -> &'static str {
        match self {
            Self::F32 => "--define-macro=ONLY=4",
            Self::F16 => "--define-macro=ONLY=2",
            Self::Bf16 => "--define-macro=ONLY=3",
        }
    }
}

/// The room that an attention kernel has for a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeadSize {
    /// Up to 64 numbers.
    Upto64,
    /// Up to 128.
    Upto128,
    /// Up to 256.
    Upto256,
}

impl HeadSize {
    /// The smallest that holds heads of `dim`; `None`: no kernel takes them.
    pub fn of(dim: usize) -> Option<Self> {
        match dim {
            1..=64 => Some(Self::Upto64),
            65..=128 => Some(Self::Upto128),
            129..=256 => Some(Self::Upto256),
            _ => None,
        }
    }

    fn room(self) -> u32 {
        match self {
            Self::Upto64 => 64,
            Self::Upto128 => 128,
            Self::Upto256 => 256,
        }
    }
}

/// One compiled unit with one kernel in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// Top-k and log-sum-exp of rows of logits.
    Select(Element),
    /// The candidates' values under a reward model.
    Score(Element),
    /// Fusion and choice.
    FuseSample,
    /// Attention over the paged cache, row by row.
    PagedAttention(Element, HeadSize),
    /// Attention of a prefill's chunks by tensor cores; not in single precision.
    ChunkAttention(Element, HeadSize),
    /// Root-mean-square norm, from single precision.
    RmsNorm(Element),
    /// Rotation of queries and keys, and the way of keys and values into the cache.
    Rotate(Element),
    /// The gate of an MLP, from single precision.
    SiluGate(Element),
    /// Rows of an embedding, to single precision.
    Embed(Element),
    /// Rows from wherever they lie into one matrix, weighted.
    CopyRows(Element),
    /// A bias added in place.
    AddBias(Element),
}

const COMMON: &str = include_str!("../../cuda/common.cuh");

impl Program {
    /// Everything that there is to compile.
    pub fn all() -> Vec<Self> {
        let sizes = [HeadSize::Upto64, HeadSize::Upto128, HeadSize::Upto256];
        let of = |element| {
            let attention = sizes.into_iter().flat_map(move |size| Self::attention(element, size));
            let layers =
                [Self::RmsNorm, Self::Rotate, Self::SiluGate, Self::Embed, Self::CopyRows, Self::AddBias];
            let step = [Self::Select(element), Self::Score(element)];
            step.into_iter().chain(attention).chain(layers.map(|program| program(element)))
        };
        Element::ALL.into_iter().flat_map(of).chain([Self::FuseSample]).collect()
    }

    /// What attends with heads of this size.
    pub fn attention(element: Element, size: HeadSize) -> impl Iterator<Item = Self> {
        let chunks = element.has_tensor_cores().then_some(Self::ChunkAttention(element, size));
        [Self::PagedAttention(element, size)].into_iter().chain(chunks)
    }

    /// The name of its source.
    pub fn name(self) -> &'static str {
        match self {
            Self::Select(_) => "select",
            Self::Score(_) => "score",
            Self::FuseSample => "fuse_sample",
            Self::PagedAttention(..) => "paged_attention",
            Self::ChunkAttention(..) => "chunk_attention",
            Self::RmsNorm(_) => "rms_norm",
            Self::Rotate(_) => "rotate",
            Self::SiluGate(_) => "silu_gate",
            Self::Embed(_) => "embed",
            Self::CopyRows(_) => "copy_rows",
            Self::AddBias(_) => "add_bias",
        }
    }

    /// What it reads; `None`: single precision alone.
    pub fn element(self) -> Option<Element> {
        match self {
            Self::FuseSample => None,
            Self::Select(element)
            | Self::Score(element)
            | Self::PagedAttention(element, _)
            | Self::ChunkAttention(element, _)
            | Self::RmsNorm(element)
            | Self::Rotate(element)
            | Self::SiluGate(element)
            | Self::Embed(element)
            | Self::CopyRows(element)
            | Self::AddBias(element) => Some(element),
        }
    }

    /// The whole source, without includes.
    pub fn source(self) -> String {
        let own = match self {
            Self::Select(_) => include_str!("../../cuda/select.cu"),
            Self::Score(_) => include_str!("../../cuda/score.cu"),
            Self::FuseSample => include_str!("../../cuda/fuse_sample.cu"),
            Self::PagedAttention(..) => include_str!("../../cuda/paged_attention.cu"),
            Self::ChunkAttention(..) => include_str!("../../cuda/chunk_attention.cu"),
            Self::RmsNorm(_) => include_str!("../../cuda/rms_norm.cu"),
            Self::Rotate(_) => include_str!("../../cuda/rotate.cu"),
            Self::SiluGate(_) => include_str!("../../cuda/silu_gate.cu"),
            Self::Embed(_) => include_str!("../../cuda/embed.cu"),
            Self::CopyRows(_) => include_str!("../../cuda/copy_rows.cu"),
            Self::AddBias(_) => include_str!("../../cuda/add_bias.cu"),
        };
        format!("{COMMON}\n{own}")
    }

    /// The kernel's name in it.
    pub fn entry(self) -> String {
        let name = self.name();
        match (self, self.element()) {
            (Self::PagedAttention(_, size) | Self::ChunkAttention(_, size), Some(element)) => {
                format!("{name}_{}_{}", size.room(), element.suffix())
            }
            (_, Some(element)) => format!("{name}_{}", element.suffix()),
            (_, None) => name.to_owned(),
        }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Score(_) => 512,
            Self::FuseSample | Self::PagedAttention(..) | Self::ChunkAttention(..) | Self::Rotate(_) => 128,
            Self::Select(_)
            | Self::RmsNorm(_)
            | Self::SiluGate(_)
            | Self::Embed(_)
            | Self::CopyRows(_)
            | Self::AddBias(_) => 256,
        }
    }

    /// NVRTC's options for it, the architecture excluded.
    pub(super) fn options(self) -> Vec<String> {
        let mut options = vec!["--std=c++17".to_owned()];
        options.extend(self.element().map(|element| element.only().to_owned()));
        match self {
            // A product contracted with a sum would round otherwise than the specification does.
            Self::FuseSample => options.push("--fmad=false".into()),
            Self::PagedAttention(_, size) | Self::ChunkAttention(_, size) => {
                options.push(format!("--define-macro=HEAD={}", size.room()))
            }
            _ => {}
        }
        options
    }
}
