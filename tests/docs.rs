//! Every Lua example in the documents is read by the program; hosted ones are loaded as the scheduler loads them.

use std::sync::Arc;

use neap::model::bundle::Bundle;
use neap::script::host::inspect;

fn blocks(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let parts = text.split("```lua\n").skip(1).map(|part| part.split("```").next().unwrap().to_owned());
    parts.collect()
}

#[test]
fn examples_are_right() {
    let mut seen = 0;
    for path in ["README.md", "docs/reference/scripts.md", "docs/guide/first-service.md", "docs/guide/scripting.md"] {
        for block in blocks(path) {
            seen += 1;
            let bundle = Bundle {
                entries: vec!["example.lua".into()],
                files: [("example.lua".to_owned(), block.clone())].into(),
            };
            let hosted =
                ["policy \"", "check \"", "rollout \"", "cron \"", "on \""].iter().any(|word| block.contains(word))
                    && !block.contains("service \"");
            match inspect(Arc::new(bundle), "example") {
                Ok(inspected) => {
                    assert!(!hosted || !inspected.registrations.is_empty(), "{path}: registers nothing:\n{block}");
                }
                Err(error) => assert!(!hosted && !error.message.contains("syntax:"), "{path}: {error}\n{block}"),
            }
        }
    }
    assert!(seen >= 5, "only {seen} examples found");
}

#[test]
fn links_lead_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("README.md")).unwrap();
    for link in text.split("](").skip(1).map(|part| part.split(')').next().unwrap()) {
        assert!(root.join(link).exists(), "README.md links to {link}");
    }
}
