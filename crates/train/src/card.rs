//! The model card of the embedded pair, written from what was measured.

use std::fmt::Write;

use crate::demo::DemoReport;
use crate::measure::{Measurement, Method, SEEN_PAIRS};
use crate::world::Trait;
use crate::world::preference::UNSEEN_PAIRS;

/// The card as Markdown.
pub fn render(report: &DemoReport) -> String {
    let options = &report.options;
    let mut card = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        card,
        "# The embedded pair\n\n\
        A base language model (`base/`) and a personalised reward model (`persrm/`, with its frozen reference in \
        `persrm/reference/`) in Hugging Face's layout, made by this project from text that it writes itself. They \
        exist to show and to test guidance offline: they know one small world and nothing else.\n\n\
        ## How it was made\n\n\
        ```sh\nattune train demo --seed {seed} --out models/demo\n```\n\n\
        On a CPU, in about twenty minutes on two cores with AVX-512. One seed gives the same files on one machine.\n\n\
        - **World**: {topics} topics in ten domains of everyday life, four intents (how, why, which of two, a story). \
        An answer has an optional opener, one to four sentences of substance in a fixed sequence, at most one joke and one \
        warning, and an optional closer. A program judges exactly which of eight traits on five independent axes it \
        has, and a grammar check says whether it is well formed: every sentence known and on topic, in order, with one register \
        and one vocabulary.\n\
        - **Held out** of all training: one topic in six, some wordings of every preference, four combinations of preferences.\n\
        - **Tokenizer**: byte-level BPE, {vocabulary} ids.\n\
        - **Base**: Llama architecture, {parameters} weights ({layers} layers, d = {width}, {heads} heads, {kv} key-value heads, tied \
        embeddings), stored as bf16; trained on {texts} texts, half of which carry a preference that is heeded only in part. \
        {lm_loss}\n\
        - **PersRM**: stage one of PAD: starts from the base's weights, `w_p` is ones, the preference stands in the prompt \
        (template in `attune.json`), DPO-form loss with beta {beta} against the frozen base, log-softmax over the whole \
        vocabulary, plus {anchor} times the chosen answer's own loss; {pairs} pairs, a tenth of them without a preference. \
        Final loss {dpo_loss:.3}, pairs ordered rightly {accuracy:.1} %.\n\
        - **Weight head** (`weight_head.safetensors`): stage two of PAD: the PersRM frozen, a linear layer from the hidden \
        state at the end of the preference's text to `w_p`; the preference does not stand in the prompt, DPO-form loss with \
        beta {head_beta} against the base as it is (reference GENERATOR); {head_pairs} other pairs. Final loss {head_loss:.3}, \
        pairs ordered rightly {head_accuracy:.1} %. It acts where a guidance gives a text with context AS_IS, and nowhere else \
        (`head-as-is` in `attune.json`).\n\
        - **Latent adapter** (`latent_adapter.safetensors`): the PersRM frozen, latents of {latent_size} numbers, an adapter of rank \
        {latent_rank} behind the last layer and an encoder of {latent_inner} inner numbers; {people} synthetic people of {latent_pairs} \
        comparisons each. A latent orders {latent_accuracy:.1} % of its person's other comparisons rightly.\n\
        - **Prior of fitted weights** (`weight_prior.safetensors`): the PersRM frozen, {prior_rank} directions in which people's \
        weights differ; {prior_people} synthetic people of {prior_pairs} comparisons each. Weights fitted to {prior_least} to \
        {prior_most} of them order {prior_accuracy:.1} % of their person's others rightly.\n\n",
        prior_rank = options.prior.rank,
        prior_people = options.prior.people,
        prior_pairs = options.prior.pairs,
        prior_least = options.prior.support.0,
        prior_most = options.prior.support.1,
        prior_accuracy = report.prior.accuracy * 100.0,
        latent_size = options.latent.size,
        latent_rank = options.latent.rank,
        latent_inner = options.latent.inner,
        people = options.latent.people,
        latent_pairs = options.latent.pairs,
        latent_accuracy = report.latent.accuracy * 100.0,
        seed = options.seed,
        topics = crate::world::Topic::all().count(),
        vocabulary = report.vocabulary,
        parameters = report.parameters,
        layers = options.model.num_hidden_layers,
        width = options.model.hidden_size,
        heads = options.model.num_attention_heads,
        kv = options.model.num_key_value_heads,
        texts = options.lm.texts,
        lm_loss =
            report.lm_loss.map_or_else(String::new, |loss| format!("Final loss {loss:.3} nats a token.")),
        beta = options.dpo.beta,
        anchor = options.dpo.anchor,
        pairs = options.dpo.pairs,
        dpo_loss = report.dpo.loss,
        accuracy = report.dpo.accuracy * 100.0,
        head_beta = options.head.beta,
        head_pairs = options.head.pairs,
        head_loss = report.head.loss,
        head_accuracy = report.head.accuracy * 100.0,
    );
    let measured = &report.measurement;
    let _ = write!(
        card,
        "## What was measured\n\n\
        {prompts} questions about held-out topics, held-out wordings of each preference (`prompts.json`), the stored bf16 \
        weights in f32 arithmetic, 10 candidates a step, reference MODEL. Cells: answers that have the asked trait / answers \
        that are well formed, in percent. *prompted* puts the preference into the base's own prompt; *guided* at strength w \
        leaves the base's prompt alone. With {prompts} questions a 95 % interval is at most about 10 points to either side.\n",
        prompts = measured.prompts,
    );
    for (temperature, title) in [(1.0, "Sampled at temperature 1"), (0.0, "Greedy")] {
        let _ = write!(card, "\n### {title}\n\n");
        let singles: Vec<Vec<Trait>> = Trait::ALL.into_iter().map(|one| vec![one]).collect();
        table(&mut card, measured, &options.strengths, &singles, temperature);
    }
    card.push_str("\n### Two preferences at once, temperature 1\n\nAsked for in training, in the first four rows; never asked for together, in the last four.\n\n");
    let both: Vec<Vec<Trait>> = SEEN_PAIRS.iter().chain(&UNSEEN_PAIRS).map(|pair| pair.to_vec()).collect();
    table(&mut card, measured, &options.strengths, &both, 1.0);
    let _ =
        write!(card, "\n## One question, several people\n\n{} (greedy, w = 2)\n\n", report.shown.question);
    for (preference, answer) in &report.shown.answers {
        let _ = writeln!(card, "- *{}*: {answer}", preference.as_deref().unwrap_or("unguided"));
    }
    card.push_str(
        "\n## Limits\n\n\
        The models answer the world's own questions only; any other text gets an answer in the world's phrases. Preferences in \
        words that the training texts never had are understood by chance. The figures say how the method works where the \
        traits are exactly judged and the models small; they say nothing about large models. Nothing in these files comes \
        from people or from other models.\n",
    );
    card
}

fn table(
    card: &mut String,
    measured: &Measurement,
    strengths: &[f64],
    asked: &[Vec<Trait>],
    temperature: f64,
) {
    card.push_str("| asked | unguided | prompted |");
    for strength in strengths {
        let _ = write!(card, " guided, w = {strength} |");
    }
    card.push_str("\n| --- | --- | --- |");
    card.push_str(&" --- |".repeat(strengths.len()));
    card.push('\n');
    let columns = || {
        let plain = [(Method::Unguided, 0.0), (Method::Prompted, 0.0)];
        plain.into_iter().chain(strengths.iter().map(|strength| (Method::Guided, *strength)))
    };
    for traits in asked {
        let names: Vec<_> = traits.iter().map(|one| one.name()).collect();
        let _ = write!(card, "| {} |", names.join(" + "));
        for (method, strength) in columns() {
            match measured.find(traits, method, strength, temperature) {
                Some(row) => {
                    let _ = write!(card, " {:.0} / {:.0} |", row.satisfied * 100.0, row.well_formed * 100.0);
                }
                None => card.push_str(" |"),
            }
        }
        card.push('\n');
    }
    let _ = write!(card, "| *mean* |");
    for (method, strength) in columns() {
        let rows: Vec<_> =
            asked.iter().filter_map(|traits| measured.find(traits, method, strength, temperature)).collect();
        let mean = |value: fn(&crate::measure::Row) -> f64| {
            rows.iter().map(|row| value(row)).sum::<f64>() / rows.len().max(1) as f64
        };
        let _ = write!(
            card,
            " {:.0} / {:.0} |",
            mean(|row| row.satisfied) * 100.0,
            mean(|row| row.well_formed) * 100.0
        );
    }
    card.push('\n');
}
