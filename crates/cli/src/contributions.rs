//! `--token-rewards` for people: what each guidance added to the score of every token.

use std::fmt::Write as _;

use attune_proto::generator::v1::{GenerateResponse, GuidanceTerm, Token};
use unicode_width::UnicodeWidthStr as _;

/// Cells of a heading; longer preferences are cut.
const HEADING: usize = 16;

/// The table as it grows, one row a token.
#[derive(Debug)]
pub(crate) struct Contributions {
    headings: Vec<String>,
    rows: Vec<(String, Token)>,
}

impl Contributions {
    /// For a request with these guidances.
    pub(crate) fn new(terms: &[GuidanceTerm]) -> Self {
        Self { headings: terms.iter().map(heading).collect(), rows: Vec::new() }
    }

    /// Takes in a response. Its text stands beside its last token: what was held back before became
    /// certain by it.
    pub(crate) fn add(&mut self, response: &GenerateResponse) {
        let last = response.tokens.len().saturating_sub(1);
        let rows = response.tokens.iter().enumerate().map(|(i, token)| {
            let text = if i == last { response.text.escape_debug().to_string() } else { String::new() };
            (text, token.clone())
        });
        self.rows.extend(rows);
    }

    /// The table; ends with a newline. A star marks the tokens that guidance chose otherwise.
    pub(crate) fn table(&self) -> String {
        let widest = self.rows.iter().map(|(text, _)| text.width()).max().unwrap_or(0).max("text".len());
        let pad = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.width()));
        let mut out = format!("  text{}  base log-prob", pad("text", widest));
        for heading in &self.headings {
            // Writing to a string cannot fail.
            let _ = write!(out, "  {}{heading}", pad(heading, 8));
        }
        out.push('\n');
        for (text, token) in &self.rows {
            let mark = if token.guided && token.id != token.unguided_id { '*' } else { ' ' };
            let _ = write!(out, "{mark} {text}{}  {:>13.2}", pad(text, widest), token.base_log_prob);
            for (heading, contribution) in self.headings.iter().zip(&token.contributions) {
                let _ = write!(out, "  {contribution:>+width$.2}", width = heading.width().max(8));
            }
            out.push('\n');
        }
        out
    }
}

/// What a guidance is called: its words, else its profile, its reward model or its method.
fn heading(term: &GuidanceTerm) -> String {
    let guidance = term.guidance.as_deref();
    let named = |of: fn(&attune_proto::reward::v1::Guidance) -> Option<&str>| {
        guidance.and_then(of).filter(|name| !name.trim().is_empty())
    };
    let name = named(|g| g.text.as_deref())
        .or_else(|| named(|g| g.profile.as_deref()))
        .or_else(|| named(|g| Some(&g.reward_model)))
        .or_else(|| named(|g| Some(&g.method)))
        .unwrap_or("reward model");
    let mut cut = String::new();
    for c in name.chars().filter(|c| !c.is_control()) {
        if cut.width() >= HEADING - 1 {
            cut.push('…');
            break;
        }
        cut.push(c);
    }
    cut
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::Guidance;

    use super::*;

    #[test]
    fn every_token_has_its_row_and_every_guidance_its_column() {
        let term = |text: &str| GuidanceTerm {
            guidance: Some(Box::new(Guidance { text: Some(text.into()), ..Guidance::default() })),
            ..GuidanceTerm::default()
        };
        let mut table = Contributions::new(&[term("brief"), term("a rather long wish, really")]);
        let token = |id, contributions: [f32; 2]| Token {
            id,
            unguided_id: 1,
            guided: true,
            base_log_prob: -0.5,
            contributions: contributions.into(),
            ..Token::default()
        };
        let response = |text: &str, tokens: Vec<Token>| GenerateResponse {
            text: text.into(),
            tokens,
            ..GenerateResponse::default()
        };
        table.add(&response("", vec![token(1, [0.25, -1.5])]));
        table.add(&response("Hé\n", vec![token(2, [10.0, 0.0])]));
        let want = [
            "  text  base log-prob     brief  a rather long w…",
            "                -0.50     +0.25             -1.50",
            "* Hé\\n          -0.50    +10.00             +0.00",
        ];
        assert_eq!(table.table().lines().collect::<Vec<_>>(), want);
    }
}
