//! The registry's numbers as Prometheus reads them (text format 0.0.4).

use std::fmt::Write;

use hyper::header;

use super::{Answer, Call, full, put, response};
use crate::registry::metrics::RegistryStats;

pub async fn answer(call: &Call) -> Answer {
    let mut stats = call.registry.stats().await?;
    // Whoever is confined to some names hears of those alone.
    stats.held.largest.retain(|one| call.caller.sees(call.registry.rules(), &one.name));
    stats.caches.retain(|cache| call.caller.sees(call.registry.rules(), &cache.prefix));
    let mut answer = response(200, full(text(&stats)));
    put(&mut answer, header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    Ok(answer)
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn text(stats: &RegistryStats) -> String {
    let mut out = String::new();
    // A text takes whatever is written.
    let mut say = |line: std::fmt::Arguments<'_>| _ = writeln!(out, "{line}");
    let about = |say: &mut dyn FnMut(std::fmt::Arguments<'_>), name: &str, kind: &str, help: &str| {
        say(format_args!("# HELP neap_registry_{name} {help}"));
        say(format_args!("# TYPE neap_registry_{name} {kind}"));
    };
    about(&mut say, "requests_total", "counter", "Answers by what was asked for, method and class of status.");
    for one in &stats.requests {
        let (kind, method, status) = (&one.kind, &one.method, &one.status);
        say(format_args!(
            "neap_registry_requests_total{{kind=\"{kind}\",method=\"{method}\",status=\"{status}\"}} {}",
            one.count
        ));
    }
    about(&mut say, "request_seconds", "histogram", "Seconds until answers began.");
    for one in &stats.times {
        for bucket in &one.buckets {
            let most = bucket.seconds.map_or("+Inf".to_owned(), |most| most.to_string());
            say(format_args!(
                "neap_registry_request_seconds_bucket{{kind=\"{}\",le=\"{most}\"}} {}",
                one.kind, bucket.count
            ));
        }
        let count = one.buckets.last().map_or(0, |bucket| bucket.count);
        say(format_args!("neap_registry_request_seconds_sum{{kind=\"{}\"}} {}", one.kind, one.seconds));
        say(format_args!("neap_registry_request_seconds_count{{kind=\"{}\"}} {count}", one.kind));
    }
    let held = &stats.held;
    for (name, kind, help, value) in [
        ("received_bytes_total", "counter", "Bytes of blobs that came.", stats.received),
        ("sent_bytes_total", "counter", "Bytes of blobs and manifests that went.", stats.sent),
        ("repositories", "gauge", "Repositories.", held.repositories),
        ("manifests", "gauge", "Manifests in all repositories.", held.manifests),
        ("tags", "gauge", "Tags in all repositories.", held.tags),
        ("blobs", "gauge", "Blobs, each once.", held.blobs),
        ("blob_bytes", "gauge", "What all blobs take.", held.size),
    ] {
        about(&mut say, name, kind, help);
        say(format_args!("neap_registry_{name} {value}"));
    }
    about(&mut say, "repository_bytes", "gauge", "What the largest repositories hold.");
    for one in &held.largest {
        say(format_args!("neap_registry_repository_bytes{{repository=\"{}\"}} {}", quoted(&one.name), one.size));
    }
    type Of = fn(&crate::registry::cache::CacheInfo) -> u64;
    let of: [(&str, &str, Of); 4] = [
        ("cache_hits_total", "Manifests and blobs of other registries that were served from what is kept.", |one| {
            one.hits
        }),
        ("cache_misses_total", "Those that were fetched.", |one| one.misses),
        (
            "cache_stale_total",
            "Manifests that were served although their registry did not say that they are the newest.",
            |one| one.stale,
        ),
        ("cache_fetched_bytes_total", "Bytes that were fetched.", |one| one.fetched),
    ];
    for (name, help, value) in of {
        about(&mut say, name, "counter", help);
        for one in &stats.caches {
            let (prefix, upstream) = (quoted(&one.prefix), quoted(&one.upstream));
            say(format_args!("neap_registry_{name}{{prefix=\"{prefix}\",upstream=\"{upstream}\"}} {}", value(one)));
        }
    }
    if let Some(replica) = &stats.replica {
        for (name, kind, help, value) in [
            ("bucket_whole", "gauge", "1 where the bucket has everything and answers.", {
                u64::from(replica.state == "whole" && replica.why.is_none())
            }),
            ("bucket_waiting", "gauge", "Changes that are not in the bucket yet.", replica.waiting),
            ("bucket_blobs", "gauge", "Blobs that are in the bucket.", replica.blobs),
            ("bucket_sent_bytes_total", "counter", "Bytes that were sent to the bucket.", replica.sent),
            ("bucket_fetched_bytes_total", "counter", "Bytes that were fetched from the bucket.", replica.fetched),
            ("bucket_evicted_total", "counter", "Blobs whose files were let go of here.", replica.evicted),
        ] {
            about(&mut say, name, kind, help);
            say(format_args!("neap_registry_{name} {value}"));
        }
    }
    about(&mut say, "cache_failing", "gauge", "1 where a cache's registry did not answer when it was last asked.");
    for one in &stats.caches {
        let (prefix, upstream, failing) = (quoted(&one.prefix), quoted(&one.upstream), u8::from(one.failing.is_some()));
        say(format_args!("neap_registry_cache_failing{{prefix=\"{prefix}\",upstream=\"{upstream}\"}} {failing}"));
    }
    out
}
