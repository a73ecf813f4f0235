//! One file on top of another, by the rules of the Compose specification.

use super::yaml::{Entry, Merge, Node, Value};

/// Puts `over` on top of `base`: mappings key by key, lists one after the other, anything else replaces; what says nothing
/// leaves what was there. `path` are the keys that lead here.
pub fn merge(base: Node, over: Node, path: &mut Vec<String>) -> Node {
    let at = over.at.clone();
    // A variable without a value is one that is passed on; anywhere else a key alone says nothing.
    let says_nothing = over.is_null() && over.merge == Merge::Usual && parent(path) != "environment";
    if says_nothing {
        return base;
    }
    let (base, over) = (in_one_form(base, path), in_one_form(over, path));
    match (base.value, over.value, over.merge) {
        (_, value, Merge::Override) => Node { at, value, merge: Merge::Usual },
        (_, _, Merge::Reset) => Node { at, value: Value::Text(String::new(), true), merge: Merge::Reset },
        (Value::Map(mut map), Value::Map(entries), _) => {
            // The options of another driver are none of this one's.
            if is_of_service(path, "logging")
                && driver(&map).is_some_and(|own| driver(&entries).is_some_and(|o| o != own))
            {
                map.retain(|(key, ..)| key != "options");
            }
            for (key, at, node) in entries {
                path.push(key.clone());
                match map.iter().position(|(known, ..)| *known == key) {
                    Some(known) => {
                        let (_, _, before) = map.remove(known);
                        let merged = merge(before, node, path);
                        if merged.merge != Merge::Reset {
                            map.insert(known, (key, at, merged));
                        }
                    }
                    None if node.merge != Merge::Reset => map.push((key, at, node)),
                    None => {}
                }
                path.pop();
            }
            Node { at, value: Value::Map(map), merge: Merge::Usual }
        }
        (Value::List(mut list), Value::List(more), _) if !replaces(path) => {
            for node in more {
                if let Some(target) = same_place(&node, path) {
                    list.retain(|known| same_place(known, path).as_ref() != Some(&target));
                }
                if !list.iter().any(|known| known.value == node.value) {
                    list.push(node);
                }
            }
            Node { at, value: Value::List(list), merge: Merge::Usual }
        }
        // A list of `KEY=value` and a mapping are two forms of the same.
        (Value::List(list), Value::Map(entries), _) if has_two_forms(path) => {
            let base = Node { at: at.clone(), value: Value::Map(pairs(list, path)), merge: Merge::Usual };
            merge(base, Node { at, value: Value::Map(entries), merge: Merge::Usual }, path)
        }
        (Value::Map(entries), Value::List(list), _) if has_two_forms(path) => {
            let base = Node { at: at.clone(), value: Value::Map(entries), merge: Merge::Usual };
            merge(base, Node { at, value: Value::Map(pairs(list, path)), merge: Merge::Usual }, path)
        }
        (_, value, _) => Node { at, value, merge: Merge::Usual },
    }
}

fn key(path: &[String]) -> &str {
    path.last().map_or("", String::as_str)
}

fn parent(path: &[String]) -> &str {
    path.iter().rev().nth(1).map_or("", String::as_str)
}

// `services.NAME.KEY`.
fn is_of_service(path: &[String], key: &str) -> bool {
    path.len() == 3 && path[0] == "services" && path[2] == key
}

fn driver(map: &[Entry]) -> Option<&str> {
    map.iter().find(|(key, ..)| key == "driver").and_then(|(_, _, node)| match &node.value {
        Value::Text(text, _) => Some(text.as_str()),
        _ => None,
    })
}

// A text where a list of texts may stand as well is a list of one.
fn in_one_form(node: Node, path: &[String]) -> Node {
    const LISTS: [&str; 5] = ["env_file", "dns", "dns_search", "dns_opt", "tmpfs"];
    let listed = LISTS.iter().any(|key| is_of_service(path, key)) && matches!(node.value, Value::Text(..));
    if !listed || node.is_null() {
        return node;
    }
    let (at, merge) = (node.at.clone(), node.merge);
    Node { at, value: Value::List(vec![Node { merge: Merge::Usual, ..node }]), merge }
}

fn replaces(path: &[String]) -> bool {
    matches!(key(path), "command" | "entrypoint" | "test")
}

fn has_two_forms(path: &[String]) -> bool {
    matches!(key(path), "environment" | "labels" | "sysctls" | "extra_hosts" | "annotations" | "args")
        || is_of_service(path, "depends_on")
        || is_of_service(path, "networks")
}

// A list of `KEY=value`, or of names, as a mapping.
fn pairs(list: Vec<Node>, path: &[String]) -> Vec<Entry> {
    let pair = |node: Node| {
        let Value::Text(text, _) = &node.value else { return None };
        let apart = match key(path) {
            "extra_hosts" => text.split_once('=').or_else(|| text.split_once(':')),
            "depends_on" | "networks" => None,
            _ => text.split_once('='),
        };
        let (key, value) = match apart {
            Some((key, value)) => (key.to_owned(), Value::Text(value.to_owned(), false)),
            None => (text.clone(), Value::Text(String::new(), true)),
        };
        Some((key, node.at.clone(), Node { value, ..node }))
    };
    list.into_iter().filter_map(pair).collect()
}

// Two volumes at one path of a container, two values of one variable, one port twice: the later counts.
fn same_place(node: &Node, path: &[String]) -> Option<String> {
    match (key(path), &node.value) {
        ("ports", Value::Text(text, _)) => Some(short_port(text)),
        ("ports", Value::Map(map)) => Some(long_port(map)),
        ("volumes", Value::Text(text, _)) => text.split(':').nth(1).map(str::to_owned),
        ("volumes" | "secrets" | "configs", Value::Map(map)) => field(map, "target"),
        ("environment" | "labels" | "sysctls", Value::Text(text, _)) => text.split('=').next().map(str::to_owned),
        _ => None,
    }
}

fn field(map: &[Entry], wanted: &str) -> Option<String> {
    map.iter().find(|(key, ..)| key == wanted).and_then(|(_, _, node)| match &node.value {
        Value::Text(text, _) => Some(text.clone()),
        _ => None,
    })
}

// Address, published port, target and protocol.
fn short_port(text: &str) -> String {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let mut parts = rest.rsplitn(3, ':');
    let (target, published, address) = (parts.next(), parts.next(), parts.next());
    let or = |part: Option<&str>| part.unwrap_or_default().to_owned();
    format!("{}:{}:{}/{protocol}", or(address), or(published), or(target))
}

fn long_port(map: &[Entry]) -> String {
    let part = |key: &str| field(map, key).unwrap_or_default();
    let protocol = field(map, "protocol").unwrap_or_else(|| "tcp".into());
    format!("{}:{}:{}/{protocol}", part("host_ip"), part("published"), part("target"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::yaml::{parse, tests::json};

    fn merged(base: &str, over: &str) -> String {
        json(&merge(parse("a", base).unwrap(), parse("b", over).unwrap(), &mut Vec::new())).to_string()
    }

    fn check(base: &str, over: &str, expected: &str) {
        let within = |text: &str| format!("services: {{s: {{{text}}}}}");
        let got = merged(&within(base), &within(over));
        assert_eq!(got, format!("{{\"services\":{{\"s\":{{{expected}}}}}}}"), "{base} + {over}");
    }

    #[test]
    fn merging() {
        let both =
            merged("s: {ports: ['1'], command: [a], environment: [A=1, B=2]}", "s: {ports: ['2'], command: [b]}");
        assert_eq!(both, r#"{"s":{"command":["b"],"environment":["A=1","B=2"],"ports":["1","2"]}}"#);
        let both = merged("s: {environment: [A=1, B=2]}", "s: {environment: {B: 3, C: 4}}");
        assert_eq!(both, r#"{"s":{"environment":{"A":"1","B":"3","C":"4"}}}"#);
        assert_eq!(merged("s: {ports: ['1']}", "s: {ports: !override ['2']}"), r#"{"s":{"ports":["2"]}}"#);
        assert_eq!(merged("s: {ports: ['1'], a: 1}", "s: {ports: !reset []}"), r#"{"s":{"a":"1"}}"#);
        let both = merged("s: {volumes: ['a:/x', 'b:/y']}", "s: {volumes: ['c:/x']}");
        assert_eq!(both, r#"{"s":{"volumes":["b:/y","c:/x"]}}"#);
    }

    #[test]
    fn what_says_nothing_leaves_what_was_there() {
        let base = "volumes: {data: {external: true, name: x}}";
        assert_eq!(merged(base, "volumes: {data: }"), r#"{"volumes":{"data":{"external":"true","name":"x"}}}"#);
        check("image: a", "image: ", r#""image":"a""#);
        check("environment: {A: 1}", "environment: {A: }", r#""environment":{"A":null}"#);
    }

    #[test]
    fn two_forms_of_one_thing() {
        check(
            "depends_on: [db]",
            "depends_on: {cache: {condition: x}}",
            r#""depends_on":{"cache":{"condition":"x"},"db":null}"#,
        );
        check(
            "networks: [front]",
            "networks: {back: {aliases: [b]}}",
            r#""networks":{"back":{"aliases":["b"]},"front":null}"#,
        );
        check("env_file: a", "env_file: [b]", r#""env_file":["a","b"]"#);
        check("dns: 1.1.1.1", "dns: 8.8.8.8", r#""dns":["1.1.1.1","8.8.8.8"]"#);
        check("extra_hosts: ['db:10.0.0.2']", "extra_hosts: {x: y}", r#""extra_hosts":{"db":"10.0.0.2","x":"y"}"#);
        check(
            "ports: ['80:80']",
            "ports: [{target: 80, published: 80}]",
            r#""ports":[{"published":"80","target":"80"}]"#,
        );
        let (base, over) =
            ("logging: {driver: json-file, options: {max-size: 1m}}", "logging: {driver: syslog, options: {tag: t}}");
        check(base, over, r#""logging":{"driver":"syslog","options":{"tag":"t"}}"#);
        check(
            base,
            "logging: {options: {tag: t}}",
            r#""logging":{"driver":"json-file","options":{"max-size":"1m","tag":"t"}}"#,
        );
    }
}
