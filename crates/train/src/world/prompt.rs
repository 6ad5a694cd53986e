//! Questions: a topic (verb and object of one domain), an intent, a wording; and their way back from text.

use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::lexicon::{DOMAINS, Domain};

/// What the asker wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Steps.
    How,
    /// Reasons.
    Why,
    /// One of two tools.
    Choice,
    /// A story.
    Story,
}

impl Intent {
    /// All intents.
    pub const ALL: [Self; 4] = [Self::How, Self::Why, Self::Choice, Self::Story];
}

/// A verb and an object of one domain, by their indices in the lexicon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic {
    domain: usize,
    verb: usize,
    object: usize,
}

impl Topic {
    /// All 240 topics.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..DOMAINS.len()).flat_map(|domain| {
            (0..DOMAINS[domain].verbs.len()).flat_map(move |verb| {
                (0..DOMAINS[domain].objects.len()).map(move |object| Self { domain, verb, object })
            })
        })
    }

    /// Whether no training text is about it. Its verb and its object do occur in training, with others:
    /// of each domain's 24 topics, four are held out, one a verb.
    pub fn held_out(self) -> bool {
        self.object == (self.verb * 2 + self.domain) % 6
    }

    /// Index of the domain, below [`DOMAINS`]'s length.
    pub fn domain_index(self) -> usize {
        self.domain
    }

    /// The domain.
    pub fn domain(self) -> &'static Domain {
        &DOMAINS[self.domain]
    }

    /// The verb's base form.
    pub fn verb(self) -> &'static str {
        self.domain().verbs[self.verb].0
    }

    /// The verb's -ing form.
    pub fn verb_ing(self) -> &'static str {
        self.domain().verbs[self.verb].1
    }

    /// The object, without its article.
    pub fn object(self) -> &'static str {
        self.domain().objects[self.object]
    }

    /// Name in reports and files, such as `bake the bread`.
    pub fn name(self) -> String {
        format!("{} the {}", self.verb(), self.object())
    }
}

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// What it is about.
    pub topic: Topic,
    /// What is wanted.
    pub intent: Intent,
    /// The two tools to choose from (indices, different); only a choice names them.
    pub tools: [usize; 2],
    /// Which wording of the intent, below [`Prompt::WORDINGS`].
    pub wording: usize,
}

impl Prompt {
    /// Wordings of each intent.
    pub const WORDINGS: usize = 3;

    /// A random question about `topic`.
    pub fn draw(topic: Topic, intent: Intent, dice: &mut Dice) -> Self {
        let tools = if intent == Intent::Choice {
            let first = dice.below(4);
            [first, (first + 1 + dice.below(3)) % 4]
        } else {
            [0, 1]
        };
        Self { topic, intent, tools, wording: dice.below(Self::WORDINGS) }
    }

    /// The question as text.
    pub fn text(&self) -> String {
        let (verb, ing, object) = (self.topic.verb(), self.topic.verb_ing(), self.topic.object());
        let [x, y] = self.tools.map(|tool| self.topic.domain().tools[tool % 4]);
        match (self.intent, self.wording) {
            (Intent::How, 0) => format!("How do I {verb} the {object}?"),
            (Intent::How, 1) => format!("What is a good way to {verb} the {object}?"),
            (Intent::How, _) => format!("Can you help me {verb} the {object}?"),
            (Intent::Why, 0) => format!("Why should I {verb} the {object}?"),
            (Intent::Why, 1) => format!("Why do people {verb} the {object}?"),
            (Intent::Why, _) => format!("What is the point of {ing} the {object}?"),
            (Intent::Choice, 0) => format!("Should I take the {x} or the {y} to {verb} the {object}?"),
            (Intent::Choice, 1) => format!("Which is better for {ing} the {object}, the {x} or the {y}?"),
            (Intent::Choice, _) => format!("I want to {verb} the {object}. Do I need the {x} or the {y}?"),
            (Intent::Story, 0) => format!("Tell me a story about {ing} the {object}."),
            (Intent::Story, 1) => format!("Do you know a tale of {ing} the {object}?"),
            (Intent::Story, _) => format!("What happened when somebody wanted to {verb} the {object}?"),
        }
    }

    /// The question whose text this is; `None` if it is none of the world's.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let named = |topic: &Topic| text.contains(topic.object());
        for topic in Topic::all().filter(named) {
            for intent in Intent::ALL {
                for wording in 0..Self::WORDINGS {
                    let pairs = (0..4).flat_map(|x| (0..4).filter(move |y| x != *y).map(move |y| [x, y]));
                    for tools in pairs.take(if intent == Intent::Choice { 12 } else { 1 }) {
                        let prompt = Self { topic, intent, tools, wording };
                        if prompt.text() == text {
                            return Some(prompt);
                        }
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_over_two_hundred_distinct_topics() {
        let names: HashSet<String> = Topic::all().map(Topic::name).collect();
        assert_eq!(names.len(), 240);
        assert_eq!(Topic::all().filter(|topic| topic.held_out()).count(), 40);
    }

    #[test]
    fn words_of_held_out_topics_are_trained_elsewhere() {
        for held in Topic::all().filter(|topic| topic.held_out()) {
            let train = || Topic::all().filter(|topic| !topic.held_out() && topic.domain == held.domain);
            assert!(train().any(|topic| topic.verb == held.verb));
            assert!(train().any(|topic| topic.object == held.object));
        }
    }

    #[test]
    fn every_question_comes_back_from_its_text() {
        let mut dice = Dice::new(5, 0);
        for topic in Topic::all() {
            for intent in Intent::ALL {
                let prompt = Prompt::draw(topic, intent, &mut dice);
                assert_eq!(Prompt::parse(&prompt.text()), Some(prompt), "{}", prompt.text());
            }
        }
        assert_eq!(Prompt::parse("What is the meaning of life?"), None);
    }
}
