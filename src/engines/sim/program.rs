//! What replicas do in a simulation. A program is what a description's image or command names.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use crate::model::service::ServiceSpec;
use crate::model::units::Duration;

/// How the replicas of a program behave. Everything has a default: a program that starts soon and works.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Program {
    /// From the start of a replica until it runs, half as long or half as long again by the seed.
    pub start: Duration,
    /// From then on until it answers.
    pub ready: Duration,
    /// It cannot be started: why.
    pub reject: Option<String>,
    /// Whether it passes checks that `answers` says nothing about.
    pub healthy: bool,
    /// It ends by itself so long after it began to run.
    pub exit_after: Option<Duration>,
    /// With this code.
    pub exit_code: i32,
    /// From the stop signal to its end; at the end of the grace period it is killed.
    pub stop: Duration,
    /// Lines that it writes once it runs.
    pub output: Vec<String>,
    /// What it answers, by path: a status, a body, or both in a table.
    pub answers: BTreeMap<String, Answer>,
}

impl Default for Program {
    fn default() -> Self {
        Program {
            start: Duration::from_millis(200),
            ready: Duration::default(),
            reject: None,
            healthy: true,
            exit_after: None,
            exit_code: 0,
            stop: Duration::from_millis(50),
            output: Vec::new(),
            answers: BTreeMap::new(),
        }
    }
}

/// What a program answers to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Program {
    /// What it answers to a request for `path`.
    pub fn answer(&self, path: &str) -> Answer {
        let path = path.split('?').next().unwrap_or_default();
        self.answers.get(path).cloned().unwrap_or_else(|| match self.healthy {
            true => Answer { status: 200, body: String::new() },
            false => Answer { status: 503, body: "unhealthy".into() },
        })
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(default)]
        struct Whole {
            status: u16,
            body: String,
        }
        impl Default for Whole {
            fn default() -> Self {
                Whole { status: 200, body: String::new() }
            }
        }
        let given = serde_json::Value::deserialize(deserializer)?;
        match &given {
            serde_json::Value::Number(status) => {
                let status = status.as_u64().and_then(|status| u16::try_from(status).ok());
                let status = status.filter(|status| (100..600).contains(status));
                let status = status.ok_or_else(|| serde::de::Error::custom("expected a status from 100 to 599"))?;
                Ok(Answer { status, body: String::new() })
            }
            serde_json::Value::String(body) => Ok(Answer { status: 200, body: body.clone() }),
            _ => {
                let whole: Whole = crate::model::strict::read("answer", &given)
                    .map_err(|error| serde::de::Error::custom(error.message))?;
                Ok(Answer { status: whole.status, body: whole.body })
            }
        }
    }
}

/// Programs by name.
#[derive(Debug, Clone, Default)]
pub struct Programs(BTreeMap<String, Arc<Program>>);

impl Programs {
    /// Says how a program behaves from now on.
    pub fn set(&mut self, name: &str, program: Program) {
        self.0.insert(name.to_owned(), Arc::new(program));
    }

    /// The program of a description: by its whole image or command line, else by the image without its tag or the first
    /// word; one that works where nothing is said.
    pub fn of(&self, spec: &ServiceSpec) -> Arc<Program> {
        let whole = match (&spec.image, &spec.command[..]) {
            (Some(image), _) => image.clone(),
            // A command that was written as one text is a line of the shell.
            (None, [shell, flag, line]) if shell == "/bin/sh" && flag == "-c" => line.clone(),
            (None, words) => words.join(" "),
        };
        let base = match &spec.image {
            Some(image) => without_tag(image),
            None => whole.split(' ').next().unwrap_or_default(),
        };
        self.0.get(&whole).or_else(|| self.0.get(base)).cloned().unwrap_or_default()
    }
}

// `host:5000/shop/api:2@sha256:...` -> `host:5000/shop/api`.
fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or_default();
    let name = image.rfind('/').map_or(0, |at| at + 1);
    image[name..].find(':').map_or(image, |colon| &image[..name + colon])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_the_whole_name_first() {
        let mut programs = Programs::default();
        programs.set("server", Program { exit_code: 1, ..Program::default() });
        programs.set("server --new", Program { exit_code: 2, ..Program::default() });
        programs.set("host:5000/shop/api", Program { exit_code: 3, ..Program::default() });
        let code = |text: serde_json::Value| {
            let mut spec = text;
            spec["name"] = "x".into();
            programs.of(&ServiceSpec::read(&spec).unwrap()).exit_code
        };
        assert_eq!(code(serde_json::json!({ "command": ["server"] })), 1);
        assert_eq!(code(serde_json::json!({ "command": "server --new" })), 2);
        assert_eq!(code(serde_json::json!({ "command": ["server", "--new"] })), 2);
        assert_eq!(code(serde_json::json!({ "command": ["server", "--old"] })), 1);
        assert_eq!(code(serde_json::json!({ "command": ["other"] })), 0);
        assert_eq!(code(serde_json::json!({ "image": "host:5000/shop/api:2" })), 3);
        assert_eq!(code(serde_json::json!({ "image": "host:5000/shop/web:2" })), 0);
    }

    #[test]
    fn answers_are_statuses_bodies_or_both() {
        let program: Program = crate::model::strict::read(
            "program",
            &serde_json::json!({ "healthy": false, "answers": { "/a": 404, "/b": "yes", "/c": { "status": 201, "body": "made" } } }),
        )
        .unwrap();
        let answer = |path: &str| {
            let Answer { status, body } = program.answer(path);
            (status, body)
        };
        assert_eq!(answer("/a?x=1"), (404, String::new()));
        assert_eq!(answer("/b"), (200, "yes".into()));
        assert_eq!(answer("/c"), (201, "made".into()));
        assert_eq!(answer("/d"), (503, "unhealthy".into()));
        let wrong = crate::model::strict::read::<Program>("program", &serde_json::json!({ "answers": { "/": 7 } }));
        assert!(wrong.unwrap_err().message.contains("100 to 599"));
    }
}
