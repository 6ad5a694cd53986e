//! What a tensor of a checkpoint is called in a GGUF file.

/// The names outside of the layers.
const WHOLE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// The parts of a layer.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The name in a GGUF file of a tensor by its name in safetensors.
pub(super) fn gguf_name(name: &str) -> Option<String> {
    if let Some((_, gguf)) = WHOLE.iter().find(|(whole, _)| *whole == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, gguf) = PARTS.iter().find(|(own, _)| *own == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// Whether a GGUF tensor of this name is one that the architectures here have.
pub(super) fn is_known(name: &str) -> bool {
    if let Some(rest) = name.strip_prefix("blk.") {
        let mut parts = rest.split('.');
        let (Some(layer), Some(part), Some(kind), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        return layer.bytes().all(|b| b.is_ascii_digit())
            && PARTS.iter().any(|(_, own)| *own == part)
            && ["weight", "bias"].contains(&kind);
    }
    name == "rope_freqs.weight" || WHOLE.iter().any(|(_, own)| *own == name)
}

/// Whether a GGUF tensor's rows are heads that are rotated.
pub(super) fn is_rotated(name: &str) -> bool {
    ["attn_q.", "attn_k."].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        let name = |n| gguf_name(n).unwrap();
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert_eq!(name("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
        assert_eq!(name("model.layers.0.input_layernorm.weight"), "blk.0.attn_norm.weight");
        assert_eq!(gguf_name("model.layers.0.mlp.router.weight"), None);
        assert!(is_rotated("blk.1.attn_k.weight") && !is_rotated("blk.1.attn_q_norm.weight"));
    }
}
