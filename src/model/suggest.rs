//! "Did you mean": the nearest of the known names.

/// The known name nearest to `given`, if one is near enough to be meant.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond this no misspelling is meant, and the distance would cost its length squared.
    if given.len() > 64 {
        return None;
    }
    let limit = 1 + given.chars().count() / 3;
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&given.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `; did you mean "x"?` where a known name is near, else the known names when they are few, else nothing.
pub fn hint<'a>(given: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(given, known.clone()) {
        return format!("; did you mean \"{name}\"?");
    }
    let names: Vec<&str> = known.into_iter().collect();
    match names.len() {
        1..=24 => format!("; known: {}", names.join(", ")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(nearest("label", ["labels", "name"]), Some("labels"));
        assert_eq!(nearest("replcias", ["replicas", "restart"]), Some("replicas"));
        assert_eq!(nearest("zebra", ["labels", "name"]), None);
    }
}
