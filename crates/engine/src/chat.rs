//! Chat templates, and the place of a preference in a conversation.

use std::{fmt, path::Path};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, ValueKind},
};
use serde::Serialize;

use crate::{
    LoadError,
    text::TextError,
    tokenizer::{read_config, token_text},
};

/// Instructions that one rendering may take: far above any real conversation, and an end to a
/// template that never ends.
const FUEL: u64 = 20_000_000;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A checkpoint's own way of writing a conversation as one text.
pub struct ChatTemplate {
    template: Template,
    /// `bos_token`, `eos_token` and the like, by name.
    tokens: Vec<(String, String)>,
}

enum Template {
    None,
    /// Kept until messages are asked for: prompts of text or ids work without it.
    Broken(String),
    Compiled(Box<Environment<'static>>),
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`: one template, or a
    /// list of named ones, of which the one called `default` is taken.
    ///
    /// # Errors
    /// A file that cannot be read, or is of another form, is named. A checkpoint without a template, or
    /// with a broken one, is no error before [`render`](Self::render).
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let config = read_config(folder)?;
        let tokens = config
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.ends_with("_token"))
            .filter_map(|(name, entry)| Some((name.clone(), token_text(entry)?.to_owned())))
            .collect();
        Ok(Self::new(folder, find(folder, &config)?, tokens))
    }

    /// A template from its source, if any, and the special tokens that it speaks of, by name. `path` is
    /// named in the log where the template is broken.
    pub(crate) fn new(path: &Path, source: Option<String>, tokens: Vec<(String, String)>) -> Self {
        let template = match source {
            None => Template::None,
            Some(source) => match environment("chat template", &without_generation_tags(&source)) {
                Ok(environment) => Template::Compiled(Box::new(environment)),
                Err(error) => {
                    let problem = explain(&error);
                    tracing::warn!(path = %path.display(), problem, "the chat template is unusable");
                    Template::Broken(problem)
                }
            },
        };
        Self { template, tokens }
    }

    /// Whether messages can be rendered.
    pub fn usable(&self) -> bool {
        matches!(self.template, Template::Compiled(_))
    }

    /// The conversation as one text, special tokens included; with `add_generation_prompt`, up to where
    /// the assistant's answer begins.
    ///
    /// # Errors
    /// There is no usable template, or it refuses these messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let environment = match &self.template {
            Template::None => return Err(TextError::NoChatTemplate),
            Template::Broken(problem) => return Err(TextError::ChatTemplate(problem.clone())),
            Template::Compiled(environment) => environment,
        };
        let mut variables = vec![
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            // Templates ask for these by `is none`, not only by `is defined`.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        variables.extend(self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
        run(environment, Value::from_pairs(variables)).map_err(|error| match refusal(&error) {
            Some(reason) => TextError::Refused(reason),
            None => TextError::ChatTemplate(explain(&error)),
        })
    }
}

/// The template's source, or none.
fn find(folder: &Path, config: &serde_json::Value) -> Result<Option<String>, LoadError> {
    let path = folder.join("chat_template.jinja");
    match crate::files::read_text(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(LoadError::file(&path, e)),
    }
    let entry = &config["chat_template"];
    let named = |entry: &&serde_json::Value| entry["name"] == "default";
    let source = match entry {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::Array(list) if list.is_empty() => return Ok(None),
        // A single template is the default under any name.
        serde_json::Value::Array(list) if list.len() == 1 => list[0]["template"].as_str(),
        serde_json::Value::Array(list) => list.iter().find(named).and_then(|e| e["template"].as_str()),
        entry => entry.as_str(),
    };
    source.map(|source| Some(source.to_owned())).ok_or_else(|| {
        let problem = "`chat_template` must be a string, or a list of {name, template} with one `default`";
        LoadError::file(&folder.join("tokenizer_config.json"), problem)
    })
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, which mark answers for training: they change
/// no text, but are no part of the template language.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |at| at + 2);
        let (tag, after) = tag.split_at(end);
        let word =
            tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+', ' ', '\t', '\n']);
        match word {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

const NAME: &str = "template";

/// One compiled template in the environment that chat templates are written for: Jinja2 with trimmed
/// blocks, Python's methods, and four helpers.
fn environment(what: &str, source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(reason)))
    });
    environment
        .add_template_owned(NAME, source.to_owned())
        .map_err(|e| Error::new(e.kind(), format!("the {what} does not compile")).with_source(e))?;
    Ok(environment)
}

fn run(environment: &Environment<'_>, variables: Value) -> Result<String, Error> {
    environment.get_template(NAME)?.render(variables)
}

/// What a template gave to `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn causes<'a>(error: &'a Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |e| e.source())
}

fn refusal(error: &Error) -> Option<String> {
    causes(error).find_map(|e| e.downcast_ref::<Refusal>()).map(|r| r.0.clone())
}

/// The error and what led to it, in one line.
fn explain(error: &Error) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = indent.filter(|v| v.kind() == ValueKind::Number).and_then(|v| usize::try_from(v).ok());
    let failed = |e: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "tojson: the value has no JSON form").with_source(e)
    };
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&indent);
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
                .map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?
        }
    }
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// JSON with a space after each comma and colon, as Python writes it: a model saw it so in training.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// Today's date. In UTC, so that a generator and its workers write the same.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(|e| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: `{format}`")).with_source(e)
    })
}

/// Puts a preference into a prompt.
pub struct PreferenceTemplate {
    environment: Environment<'static>,
}

impl PreferenceTemplate {
    /// What is used where a checkpoint says nothing else.
    pub const DEFAULT: &'static str =
        "Answer in the way that I prefer. My preference: {{ preference }}\n\n{{ content }}";

    /// A template over `preference` and `content`, the last user message; the default one if none.
    ///
    /// # Errors
    /// The template does not compile, or does not use the preference.
    pub fn new(template: Option<&str>) -> Result<Self, TextError> {
        let source = template.unwrap_or(Self::DEFAULT);
        let unusable = |error: Error| TextError::PreferenceTemplate(explain(&error));
        let environment = environment("preference template", source).map_err(unusable)?;
        let used = environment.get_template(NAME).map_err(unusable)?.undeclared_variables(false);
        for name in ["preference", "content"] {
            if !used.contains(name) {
                let problem = format!("it does not use the variable `{name}`");
                return Err(TextError::PreferenceTemplate(problem));
            }
        }
        Ok(Self { environment })
    }

    /// The conversation with the preference in its last user message.
    ///
    /// # Errors
    /// There is no user message, or the template fails.
    pub fn apply(&self, messages: &[Message], preference: &str) -> Result<Vec<Message>, TextError> {
        let last = messages.iter().rposition(|m| m.role == "user").ok_or(TextError::NoUserMessage)?;
        let mut messages = messages.to_vec();
        messages[last].content = self.apply_text(&messages[last].content, preference)?;
        Ok(messages)
    }

    /// A raw text with the preference.
    ///
    /// # Errors
    /// The template fails.
    pub fn apply_text(&self, text: &str, preference: &str) -> Result<String, TextError> {
        run(&self.environment, context! { preference, content => text })
            .map_err(|error| TextError::PreferenceTemplate(explain(&error)))
    }
}
