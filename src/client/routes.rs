//! Routes, as they are asked for and shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::name::Name;
use crate::model::route::RouteSpec;
use crate::network::table::{Carried, Passed, TIMES};

/// A replica behind a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Replica {
    /// Its task: `shop.1`.
    pub task: String,
    /// What went to it, whichever route led there.
    pub carried: Carried,
}

/// A route, with what has gone by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteInfo {
    /// Its name; a service's own are `SERVICE/1` and so on.
    pub name: String,
    /// The service that it is one of, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Name>,
    /// What is asked for: `https://shop.example.com/api`.
    pub url: String,
    /// What it is described as.
    pub spec: RouteSpec,
    /// How many replicas take requests.
    pub serving: u32,
    /// Those replicas, and what went to each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<Replica>,
    /// Why it is not listened for, or leads nowhere, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What has gone by it on all hosts since their balancers started, as of a few seconds ago.
    pub passed: Passed,
}

impl RouteInfo {
    /// How many requests were answered.
    pub fn requests(&self) -> u64 {
        self.passed.answers.iter().sum()
    }

    /// How many of them with an error of the server's side.
    pub fn errors(&self) -> u64 {
        self.passed.answers[4]
    }

    /// The time, in milliseconds, within which so many percent were answered: the upper bound of the class that it falls into;
    /// none where nothing was, or it was longer than the longest.
    pub fn within(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.passed.times.iter().sum();
        let wanted = (total * percent).div_ceil(100);
        let mut seen = 0;
        let found = self.passed.times.iter().position(|count| {
            seen += count;
            seen >= wanted && seen > 0
        });
        TIMES.get(found?).copied()
    }
}
