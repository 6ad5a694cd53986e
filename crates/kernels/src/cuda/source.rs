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
    /// Attention over the paged cache.
    PagedAttention(Element, HeadSize),
}

const COMMON: &str = include_str!("../../cuda/common.cuh");

impl Program {
    /// Everything that there is to compile.
    pub fn all() -> Vec<Self> {
        let sizes = [HeadSize::Upto64, HeadSize::Upto128, HeadSize::Upto256];
        let of = |element| {
            let attention = sizes.map(|size| Self::PagedAttention(element, size));
            [Self::Select(element), Self::Score(element)].into_iter().chain(attention)
        };
        Element::ALL.into_iter().flat_map(of).chain([Self::FuseSample]).collect()
    }

    /// The name of its source.
    pub fn name(self) -> &'static str {
        match self {
            Self::Select(_) => "select",
            Self::Score(_) => "score",
            Self::FuseSample => "fuse_sample",
            Self::PagedAttention(..) => "paged_attention",
        }
    }

    /// What it reads; `None`: single precision alone.
    pub fn element(self) -> Option<Element> {
        match self {
            Self::Select(element) | Self::Score(element) | Self::PagedAttention(element, _) => Some(element),
            Self::FuseSample => None,
        }
    }

    /// The whole source, without includes.
    pub fn source(self) -> String {
        let own = match self {
            Self::Select(_) => include_str!("../../cuda/select.cu"),
            Self::Score(_) => include_str!("../../cuda/score.cu"),
            Self::FuseSample => include_str!("../../cuda/fuse_sample.cu"),
            Self::PagedAttention(..) => include_str!("../../cuda/paged_attention.cu"),
        };
        format!("{COMMON}\n{own}")
    }

    /// The kernel's name in it.
    pub fn entry(self) -> String {
        match self {
            Self::Select(element) | Self::Score(element) => format!("{}_{}", self.name(), element.suffix()),
            Self::FuseSample => self.name().to_owned(),
            Self::PagedAttention(element, size) => {
                format!("{}_{}_{}", self.name(), size.room(), element.suffix())
            }
        }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Select(_) => 256,
            Self::Score(_) => 512,
            Self::FuseSample => 64,
            Self::PagedAttention(..) => 128,
        }
    }

    /// NVRTC's options for it, the architecture excluded.
    pub(super) fn options(self) -> Vec<String> {
        let mut options = vec!["--std=c++17".to_owned()];
        match self {
            Self::Select(element) | Self::Score(element) => options.push(element.only().into()),
            // A product contracted with a sum would round otherwise than the specification does.
            Self::FuseSample => options.push("--fmad=false".into()),
            Self::PagedAttention(element, size) => {
                options.push(element.only().into());
                options.push(format!("--define-macro=HEAD={}", size.room()));
            }
        }
        options
    }
}
