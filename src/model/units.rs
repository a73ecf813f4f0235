//! Durations, sizes and cpu shares: types with the grammar that people write, never bare numbers.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{Error, Result};

/// A span of time, to the millisecond; written `"500ms"`, `"30s"`, `"1h30m"`, `"2d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(u64);

impl Duration {
    /// No time at all.
    pub const ZERO: Duration = Duration(0);

    /// From whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Duration(seconds.saturating_mul(1000))
    }

    /// From milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Duration(millis)
    }

    /// In milliseconds.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// In seconds, with fractions.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// As the standard library's type.
    pub const fn std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl From<std::time::Duration> for Duration {
    fn from(period: std::time::Duration) -> Self {
        Duration(u64::try_from(period.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Longest period accepted from outside: about 100 years, so that a moment plus a period never overflows.
const LONGEST: u64 = 100 * 366 * 86_400_000;

const TIME_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

impl FromStr for Duration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::invalid(format!("duration {text:.40?}"), why)
                .help("write \"500ms\", \"30s\", \"5m\", \"1h30m\" or \"2d\"")
        };
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Duration::ZERO);
        }
        if rest.is_empty() {
            return Err(wrong("is empty"));
        }
        let mut total = 0.0_f64;
        let mut last = f64::INFINITY;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, tail) = rest.split_at(digits);
            let amount: f64 = number.parse().map_err(|_| wrong("has a unit without a number"))?;
            let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, next) = tail.split_at(end);
            if unit.is_empty() {
                return Err(wrong("has no unit"));
            }
            let Some((_, millis)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(wrong("has an unknown unit"));
            };
            let millis = *millis as f64;
            if millis >= last {
                return Err(wrong("has its units out of order"));
            }
            last = millis;
            total += amount * millis;
            rest = next;
        }
        if total > LONGEST as f64 {
            return Err(wrong("is longer than 100 years"));
        }
        Ok(Duration(total.round() as u64))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (name, millis) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if rest >= millis {
                write!(f, "{}{name}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

/// A size in bytes; written `"512MiB"`, `"2GiB"`, `"512M"` (Docker's short forms count in 1024), `"10MB"` (in 1000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// A size as Docker has it, which counts in 1024 whether `m` or `mb` is written, in a form that is read so here as well.
pub fn docker_size(text: &str) -> &str {
    let short = text.strip_suffix(['b', 'B']).filter(|short| short.ends_with(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T']));
    short.unwrap_or(text)
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::invalid(format!("size {text:.40?}"), why).help("write \"512MiB\", \"2GiB\", \"512M\" or \"10MB\"")
        };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let amount: f64 = number.parse().map_err(|_| wrong("does not begin with a number"))?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "ki" | "kib" => 1 << 10,
            "m" | "mi" | "mib" => 1 << 20,
            "g" | "gi" | "gib" => 1 << 30,
            "t" | "ti" | "tib" => 1 << 40,
            "kb" => 1000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong("has an unknown unit")),
        };
        let total = amount * factor as f64;
        if total > (1_u64 << 60) as f64 {
            return Err(wrong("is larger than an exbibyte"));
        }
        Ok(Bytes(total.round() as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor {
                let whole = self.0 as f64 / factor as f64;
                return if self.0.is_multiple_of(factor) {
                    write!(f, "{whole}{name}")
                } else {
                    write!(f, "{whole:.1}{name}")
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A share of processor time in thousandths of a core; written as cores: `0.5`, `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cpu(pub u32);

impl Cpu {
    /// In cores.
    pub fn cores(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// From cores; an error when negative, not a number, or more than 65,536.
    pub fn from_cores(cores: f64) -> Result<Self> {
        if !(0.0..=65_536.0).contains(&cores) {
            return Err(Error::invalid(format!("cpu {cores}"), "is not a number of cores").help("write cores: 0.5, 2"));
        }
        Ok(Cpu((cores * 1000.0).round() as u32))
    }
}

impl FromStr for Cpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid(format!("cpu {text:.40?}"), "is not a number of cores").help("write cores: 0.5, 2");
        Cpu::from_cores(text.trim().parse().map_err(|_| wrong())?)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cores())
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.cores())
    }
}

// Numbers are accepted only where their unit is plain: bytes for a size, cores for cpu, never for a duration.
macro_rules! text_unit {
    ($type:ident, $expecting:literal, $number:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|error: Error| E::custom(error))
                    }

                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        self.visit_f64(number as f64)
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        self.visit_f64(number as f64)
                    }

                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<$type, E> {
                        let convert: fn(f64) -> Result<$type> = $number;
                        convert(number).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
    };
}

macro_rules! text_schema {
    ($type:ident, $schema:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}

text_unit!(Duration, "a duration such as \"30s\"", |number| {
    if number == 0.0 {
        return Ok(Duration::ZERO);
    }
    Err(Error::invalid(format!("duration {number}"), "has no unit").help(format!("write \"{number}s\" for seconds")))
});
text_unit!(Bytes, "a size such as \"512MiB\"", |number| {
    if !(0.0..=(1_u64 << 60) as f64).contains(&number) {
        return Err(Error::invalid(format!("size {number}"), "is not a number of bytes"));
    }
    Ok(Bytes(number as u64))
});
text_unit!(Cpu, "a number of cores such as 0.5", Cpu::from_cores);
text_schema!(Duration, schemars::json_schema!({ "type": "string", "examples": ["500ms", "30s", "1h30m"] }));
text_schema!(Bytes, schemars::json_schema!({ "type": ["string", "integer"], "examples": ["512MiB", "2GiB"] }));
text_schema!(Cpu, schemars::json_schema!({ "type": ["number", "string"], "minimum": 0, "examples": [0.5, 2] }));

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// A size that the short form would round is written in bytes, so that what is stored reads back the same.
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        if text.parse::<Bytes>().ok() == Some(*self) {
            serializer.serialize_str(&text)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<T: FromStr<Err = Error> + fmt::Display>(input: &str, expected: &str) {
        let got = match input.parse::<T>() {
            Ok(value) => value.to_string(),
            Err(error) => format!("error: {}", error.message),
        };
        assert_eq!(got, expected, "for {input:?}");
    }

    #[test]
    fn durations() {
        check::<Duration>("30s", "30s");
        check::<Duration>("1h30m", "1h30m");
        check::<Duration>("1.5h", "1h30m");
        check::<Duration>("90s", "1m30s");
        check::<Duration>("0", "0s");
        check::<Duration>("250ms", "250ms");
        check::<Duration>("30", "error: has no unit");
        check::<Duration>("5x", "error: has an unknown unit");
        check::<Duration>("s", "error: has a unit without a number");
        check::<Duration>("", "error: is empty");
        check::<Duration>("1m1h", "error: has its units out of order");
        check::<Duration>("99999999w", "error: is longer than 100 years");
    }

    #[test]
    fn sizes() {
        check::<Bytes>("512MiB", "512MiB");
        check::<Bytes>("512M", "512MiB");
        check::<Bytes>("512m", "512MiB");
        check::<Bytes>("1000MB", "953.7MiB");
        check::<Bytes>("17", "17B");
        check::<Bytes>("1.5g", "1.5GiB");
        check::<Bytes>("many", "error: does not begin with a number");
        check::<Bytes>("5 furlongs", "error: has an unknown unit");
    }

    #[test]
    fn cpus() {
        check::<Cpu>("0.5", "0.5");
        check::<Cpu>("2", "2");
        check::<Cpu>("-1", "error: is not a number of cores");
        check::<Cpu>("NaN", "error: is not a number of cores");
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in "\\PC{0,40}") {
            let _ = text.parse::<Duration>();
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Cpu>();
        }

        #[test]
        fn what_is_written_reads_back(millis in 0..LONGEST, bytes in 0_u64..(1 << 50), milli in 0_u32..65_536_000) {
            prop_assert_eq!(Duration(millis).to_string().parse::<Duration>().unwrap(), Duration(millis));
            let size = serde_json::to_string(&Bytes(bytes)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bytes>(&size).unwrap(), Bytes(bytes));
            let cpu = serde_json::to_string(&Cpu(milli)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Cpu>(&cpu).unwrap(), Cpu(milli));
        }
    }
}
