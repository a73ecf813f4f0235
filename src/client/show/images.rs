//! Images as people read them.

use super::{ago, rows};
use crate::client::images::{
    Built, CacheInfo, Copied, ImageInfo, ImageKeeper, ImagePart, ImageRepository, ImageTag, ImagesCollected,
    ImagesScrubbed, Imported, MovesSeen, NodeMoved, Pruned, RegistryStats, Rule,
};
use crate::model::clock::Timestamp;
use crate::model::units::Bytes;
use crate::registry::metrics::{RepositorySize, RequestCount};

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// `registry ls`.
pub fn repositories(all: &[ImageRepository]) -> String {
    let row = |one: &ImageRepository| {
        [one.name.clone(), one.tags.to_string(), one.manifests.to_string(), Bytes(one.size).to_string()]
    };
    rows(&["REPOSITORY", "TAGS", "MANIFESTS", "SIZE"], all.iter().map(row))
}

/// `registry tags`.
pub fn tags(all: &[ImageTag], now: Timestamp) -> String {
    let row = |tag: &ImageTag| [tag.tag.clone(), short(&tag.digest), Bytes(tag.size).to_string(), ago(now, tag.at)];
    rows(&["TAG", "DIGEST", "SIZE", "PUSHED"], all.iter().map(row))
}

/// `registry inspect`.
pub fn image(image: &ImageInfo, now: Timestamp) -> String {
    let mut lines = vec![
        format!("{}@{}", image.repository, image.digest),
        format!("  kind      {}", image.media_type),
        format!("  size      {}", Bytes(image.size)),
        format!("  pushed    {}", ago(now, image.at)),
    ];
    let mut say = |what: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("  {what:<9} {text}"));
        }
    };
    say("tags", image.tags.join(" "));
    if let Some(config) = &image.config {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &serde_json::Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        let platform = [text(&config["os"]), text(&config["architecture"])];
        say("platform", platform.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/"));
        let run = &config["config"];
        say("command", [list(&run["Entrypoint"]), list(&run["Cmd"])].concat().join(" "));
        say(
            "ports",
            run["ExposedPorts"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(port, _)| port.clone())
                .collect::<Vec<_>>()
                .join(" "),
        );
        let labels = run["Labels"].as_object().into_iter().flatten();
        labels.for_each(|(name, value)| say("label", format!("{name}={}", text(value))));
    }
    say("subject", image.subject.clone().unwrap_or_default());
    let part = |part: &ImagePart| format!("{} {:>10} {}", part.digest, Bytes(part.size), part.platform);
    image.layers.iter().for_each(|layer| say("layer", part(layer).trim_end().to_owned()));
    image.manifests.iter().for_each(|one| say("manifest", part(one)));
    image.referrers.iter().for_each(|one| say("referrer", format!("{} {}", one.digest, one.artifact_type)));
    image.annotations.iter().for_each(|(name, value)| say("note", format!("{name}={value}")));
    lines.join("\n")
}

/// `registry gc`.
pub fn collected(collected: &ImagesCollected, dry_run: bool) -> String {
    let ImagesCollected { unlinked, blobs, size, strays, copies, uploads } = collected;
    let size = Bytes(*size);
    match dry_run {
        true => format!("{blobs} blobs ({size}) would be removed; {unlinked} would leave their repositories"),
        false => format!(
            "{blobs} blobs ({size}) removed, {unlinked} taken out of their repositories, {copies} copies, {strays} stray files and {uploads} uploads \
             removed"
        ),
    }
}

/// `registry cache ls`.
pub fn caches(all: &[CacheInfo]) -> String {
    let row = |cache: &CacheInfo| {
        let state = cache.failing.clone().unwrap_or_else(|| "ok".into());
        let counts = [cache.hits, cache.misses, cache.stale].map(|count| count.to_string());
        let [hits, misses, stale] = counts;
        let keep = cache.keep.to_string();
        [
            format!("{}/", cache.prefix),
            cache.upstream.clone(),
            keep,
            hits,
            misses,
            stale,
            Bytes(cache.fetched).to_string(),
            state,
        ]
    };
    rows(&["PREFIX", "UPSTREAM", "KEEP", "HITS", "MISSES", "STALE", "FETCHED", "STATE"], all.iter().map(row))
}

/// `registry prune`.
pub fn pruned(pruned: &Pruned, dry_run: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    for image in &pruned.images {
        match &image.tag {
            Some(tag) => lines.push(format!("{}:{tag} {}", image.repository, short(&image.digest))),
            None => lines.push(format!("{}@{}", image.repository, image.digest)),
        }
    }
    let would = if dry_run { "would go" } else { "gone" };
    let stay = match (pruned.in_use, pruned.immutable) {
        (0, 0) => String::new(),
        (used, 0) => format!("; {used} stay, for they are in use"),
        (0, immutable) => format!("; {immutable} stay, for a rule makes them immutable"),
        (used, immutable) => {
            format!("; {used} stay, for they are in use, and {immutable}, for a rule makes them immutable")
        }
    };
    lines.push(format!("{} {would}{stay}", lines.len()));
    lines.join("\n")
}

/// `registry copy`.
pub fn copied(copied: &Copied) -> String {
    let digest = copied.digest.as_deref().unwrap_or_default();
    format!("{digest}: {} blobs ({}), {} sent", copied.of, Bytes(copied.of_size), Bytes(copied.sent))
}

/// `registry build`.
pub fn built(built: &Built) -> String {
    let Built { image, tag, platform, layers, size, .. } = built;
    format!("{image}: tag {tag}, {platform}, {layers} layers ({})", Bytes(*size))
}

/// `registry pull` and `registry push`.
pub fn moved(seen: &MovesSeen) -> String {
    let row = |node: &NodeMoved| {
        let digest = node.digest.as_deref().map(short).unwrap_or_default();
        [node.node.clone(), digest, node.error.clone().unwrap_or_else(|| "done".into())]
    };
    format!("{}\n{}", seen.image, rows(&["NODE", "DIGEST", "STATE"], seen.nodes.iter().map(row)))
}

/// `registry import`.
pub fn imported(imported: &Imported) -> String {
    let Imported { repositories, manifests, tags, blobs, size, .. } = imported;
    let mut lines: Vec<String> = imported.left.iter().map(|left| format!("left out: {left}")).collect();
    lines.push(format!(
        "{repositories} repositories, {tags} tags, {manifests} manifests, {blobs} blobs ({})",
        Bytes(*size)
    ));
    lines.join("\n")
}

/// `registry keeper`.
pub fn keeper(keeper: &ImageKeeper) -> String {
    let state = if keeper.connected { "" } else { ", which is not there now" };
    let at = keeper.address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
    let mut lines = vec![match &keeper.node {
        Some(node) => format!("{node}{at}{state}"),
        None => "no host keeps the images".to_owned(),
    }];
    let others: Vec<&str> =
        keeper.offers.iter().map(String::as_str).filter(|node| Some(*node) != keeper.node.as_deref()).collect();
    if !others.is_empty() {
        lines.push(format!("could as well: {}", others.join(", ")));
    }
    lines.join("\n")
}

/// `registry stats`.
pub fn stats(stats: &RegistryStats) -> String {
    let held = &stats.held;
    let mut lines = vec![
        format!("repositories  {}", held.repositories),
        format!("tags          {}", held.tags),
        format!("manifests     {}", held.manifests),
        format!("blobs         {} ({})", held.blobs, Bytes(held.size)),
        format!("received      {}", Bytes(stats.received)),
        format!("sent          {}", Bytes(stats.sent)),
    ];
    if let Some(replica) = &stats.replica {
        let why = replica.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let local = replica.local.map(|local| format!(", {} of disk here at most", Bytes(local))).unwrap_or_default();
        lines.extend([
            String::new(),
            format!("bucket        {}, {}{why}", replica.place, replica.state),
            format!("              {} blobs, {} changes wait{local}", replica.blobs, replica.waiting),
            format!(
                "              {} sent, {} fetched, {} blobs let go of here",
                Bytes(replica.sent),
                Bytes(replica.fetched),
                replica.evicted
            ),
        ]);
    }
    if !stats.requests.is_empty() {
        let times = |kind: &str| stats.times.iter().find(|times| times.kind == kind);
        let mean = |kind: &str| {
            let times = times(kind)?;
            let count = times.buckets.last().map(|bucket| bucket.count).filter(|count| *count > 0)?;
            Some(format!("{:.1} ms", times.seconds * 1000.0 / count as f64))
        };
        let row = |one: &RequestCount| {
            let mean = mean(&one.kind).unwrap_or_default();
            [one.kind.clone(), one.method.clone(), one.status.clone(), one.count.to_string(), mean]
        };
        let table = rows(&["ASKED", "METHOD", "STATUS", "COUNT", "MEAN OF ALL SUCH"], stats.requests.iter().map(row));
        lines.extend([String::new(), table.trim_end().to_owned()]);
    }
    if !held.largest.is_empty() {
        let row = |one: &RepositorySize| [one.name.clone(), Bytes(one.size).to_string()];
        let table = rows(&["LARGEST REPOSITORIES", "SIZE"], held.largest.iter().take(10).map(row));
        lines.extend([String::new(), table.trim_end().to_owned()]);
    }
    if !stats.caches.is_empty() {
        lines.extend([String::new(), caches(&stats.caches).trim_end().to_owned()]);
    }
    lines.join("\n")
}

/// `registry rule ls`.
pub fn rules(all: &[Rule]) -> String {
    let who = |list: &Option<Vec<String>>| list.as_ref().map_or("-".to_owned(), |list| list.join(","));
    let row = |one: &Rule| {
        let rule = &one.rule;
        let quota = rule.quota.map_or("-".to_owned(), |quota| quota.to_string());
        let immutable = if rule.immutable.is_empty() { "-".to_owned() } else { rule.immutable.join(",") };
        [one.repositories.clone(), who(&rule.pull), who(&rule.push), who(&rule.delete), immutable, quota]
    };
    rows(&["REPOSITORIES", "PULL", "PUSH", "DELETE", "IMMUTABLE", "QUOTA"], all.iter().map(row))
}

/// `registry scrub`.
pub fn scrubbed(scrubbed: &ImagesScrubbed) -> String {
    let mut lines = vec![format!("{} blobs ({}) read", scrubbed.blobs, Bytes(scrubbed.size))];
    lines.extend(scrubbed.damaged.iter().map(|digest| format!("damaged, put aside: {digest}")));
    lines.extend(scrubbed.missing.iter().map(|digest| format!("missing: {digest}")));
    lines.join("\n")
}
