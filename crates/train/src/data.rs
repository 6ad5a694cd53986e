//! People's own data: JSON lines, read whole, a bad line named by its number.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use attune_engine::{Message, PreferenceTemplate};
use serde::de::DeserializeOwned;

use crate::batch::Encoded;
use crate::open::Opened;
use crate::world::pairs::{Pair, Sample};

/// A line of a data file.
pub trait Line: DeserializeOwned {
    /// What the line is, with its keys.
    const FORM: &str;

    /// Refuses what says nothing.
    ///
    /// # Errors
    /// Names the key.
    fn check(&self) -> Result<()>;
}

impl Line for Sample {
    const FORM: &str = "{\"prompt\", \"answer\", \"preference\" (may be absent)}";

    fn check(&self) -> Result<()> {
        ensure!(!self.prompt.trim().is_empty(), "`prompt` is empty");
        ensure!(!self.answer.trim().is_empty(), "`answer` is empty");
        Ok(())
    }
}

impl Line for Pair {
    const FORM: &str = "{\"prompt\", \"preference\" (may be absent), \"chosen\", \"rejected\"}";

    fn check(&self) -> Result<()> {
        ensure!(!self.prompt.trim().is_empty(), "`prompt` is empty");
        ensure!(!self.chosen.trim().is_empty(), "`chosen` is empty");
        ensure!(!self.rejected.trim().is_empty(), "`rejected` is empty");
        ensure!(self.chosen != self.rejected, "`chosen` and `rejected` are the same text");
        Ok(())
    }
}

/// A line that was read, with its number from 1.
pub type Numbered<T> = (usize, T);

/// Reads all lines of a file; blank ones are passed over.
///
/// # Errors
/// The file cannot be read or holds nothing; a line is damaged, lacks a key or says nothing: named by its number.
pub fn lines<T: Line>(path: &Path) -> Result<Vec<Numbered<T>>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut found = Vec::new();
    for (line, number) in BufReader::new(file).lines().zip(1..) {
        let read = || {
            let line = line?;
            if line.trim().is_empty() {
                return Ok(None);
            }
            let one: T = serde_json::from_str(&line).with_context(|| format!("is not {}", T::FORM))?;
            one.check()?;
            Ok::<_, anyhow::Error>(Some((number, one)))
        };
        found.extend(read().with_context(|| format!("{}, line {number}", path.display()))?);
    }
    ensure!(!found.is_empty(), "{} holds no lines of the form {}", path.display(), T::FORM);
    Ok(found)
}

/// Turns texts into ids as the services do: by the model's chat template, or raw where it has none.
pub struct Encoder<'a> {
    opened: &'a Opened,
    template: &'a PreferenceTemplate,
    /// The longest text, in tokens.
    longest: usize,
    /// What ends an answer.
    end: u32,
}

impl<'a> Encoder<'a> {
    /// Texts may be as long as the model holds, or as `longest`, in tokens.
    ///
    /// # Errors
    /// The model names no end of texts, or its chat template fails.
    pub fn new(opened: &'a Opened, template: &'a PreferenceTemplate, longest: Option<usize>) -> Result<Self> {
        let assets = &opened.assets;
        let Some(&first) = assets.eos.first() else {
            bail!("the model names no `eos_token_id`, so that no answer could end");
        };
        let mut end = first;
        if assets.chat.usable() {
            // Of several ends, the one that the chat template puts behind an answer.
            let talk = [Message::new("user", "a"), Message::new("assistant", "b")];
            let ids = assets.tokenizer.encode_rendered(&assets.chat.render(&talk, false)?)?;
            end = ids.into_iter().rev().find(|id| assets.eos.contains(id)).unwrap_or(first);
        }
        let longest = longest.map_or(assets.config.context, |most| most.min(assets.config.context));
        Ok(Self { opened, template, longest, end })
    }

    /// A prompt with an answer; the preference, if any, where the template puts it.
    ///
    /// # Errors
    /// A template fails; the text is too long, with its length.
    pub fn text(&self, prompt: &str, preference: Option<&str>, answer: &str) -> Result<Encoded> {
        let assets = &self.opened.assets;
        let preference = preference.filter(|text| !text.trim().is_empty());
        let prompt = if assets.chat.usable() {
            let mut messages = vec![Message::new("user", prompt)];
            if let Some(preference) = preference {
                messages = self.template.apply(&messages, preference)?;
            }
            assets.tokenizer.encode_rendered(&assets.chat.render(&messages, true)?)?
        } else {
            let with =
                preference.map(|preference| self.template.apply_text(prompt, preference)).transpose()?;
            assets.tokenizer.encode_raw(with.as_deref().unwrap_or(prompt))?
        };
        ensure!(!prompt.is_empty(), "the prompt has no tokens");
        let encoded = Encoded::new(&prompt, &assets.tokenizer.encode_rendered(answer)?, self.end);
        let vocabulary = assets.config.vocab;
        if let Some(id) = encoded.ids.iter().find(|id| **id as usize >= vocabulary) {
            bail!("the tokenizer gives the id {id}, outside of the model's {vocabulary}");
        }
        let length = encoded.ids.len();
        ensure!(length <= self.longest, "has {length} tokens, and {} are allowed; shorten it", self.longest);
        Ok(encoded)
    }

    /// A preference by itself, as the weight head reads it.
    ///
    /// # Errors
    /// It has no tokens, or too many.
    pub fn preference(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.opened.assets.tokenizer.encode_raw(text)?;
        let most = self.longest;
        ensure!(
            (1..=most).contains(&ids.len()),
            "`preference` has {} tokens; 1 to {most} are allowed",
            ids.len()
        );
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn lines_come_with_their_numbers() {
        let (_folder, path) = written(
            "{\"prompt\": \"a\", \"preference\": \"short\", \"chosen\": \"b\", \"rejected\": \"c\"}\n\n\
             {\"prompt\": \"d\", \"chosen\": \"e\", \"rejected\": \"f\", \"source\": \"ignored\"}\n",
        );
        let pairs = lines::<Pair>(&path).unwrap();
        assert_eq!(pairs.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(pairs[0].1.preference.as_deref(), Some("short"));
        assert_eq!(pairs[1].1.preference, None);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let good = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
        for (bad, why) in [
            ("{\"prompt\": \"a\", \"chosen\": \"b\"}", "rejected"),
            ("{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}", "same text"),
            ("{\"prompt\": \" \", \"chosen\": \"b\", \"rejected\": \"c\"}", "`prompt`"),
            ("{\"prompt\": 7, \"chosen\": \"b\", \"rejected\": \"c\"}", "string"),
            ("{\"prompt\"", "EOF"),
        ] {
            let (_folder, path) = written(&format!("{good}{good}{bad}\n{good}"));
            let error = format!("{:#}", lines::<Pair>(&path).unwrap_err());
            assert!(error.contains("line 3") && error.contains(why), "{error}");
        }
        let (_folder, path) = written("\n\n");
        assert!(lines::<Sample>(&path).unwrap_err().to_string().contains("holds no lines"));
    }
}
