//! Which methods a path takes: another one is a mistake of whoever asks, and told from a path that is not there.

/// The methods of a path behind `/v1/`; none: there is no such path.
pub fn of(path: &[&str]) -> Option<&'static [&'static str]> {
    const GET: Option<&[&str]> = Some(&["GET", "HEAD"]);
    const PUT: Option<&[&str]> = Some(&["PUT"]);
    match path {
        ["status", "leader" | "peers"] | ["prometheus", "targets"] => GET,
        ["agent", "self" | "members" | "services" | "checks"] | ["agent", "health", "service", "id" | "name", _] => GET,
        ["agent", "maintenance"] | ["agent", "service" | "check", "register"] => PUT,
        ["agent", "service", "deregister" | "maintenance", _] => PUT,
        ["agent", "check", "deregister" | "pass" | "warn" | "fail" | "update", _] => PUT,
        ["agent", "service", _] => GET,
        ["catalog", "register" | "deregister"] => PUT,
        ["catalog", "datacenters" | "nodes" | "services"] => GET,
        ["catalog", "service" | "connect" | "node" | "node-services", _] => GET,
        ["health", "service" | "connect" | "ingress" | "node" | "checks" | "state", _] => GET,
        ["kv", ..] => Some(&["GET", "HEAD", "PUT", "DELETE"]),
        ["session", "create"] | ["session", "destroy" | "renew", _] => PUT,
        ["session", "list"] | ["session", "info" | "node", _] => GET,
        ["event", "fire", _] | ["txn"] => PUT,
        ["event", "list"] => GET,
        ["snapshot"] => Some(&["GET", "HEAD", "PUT"]),
        ["query"] => Some(&["GET", "HEAD", "POST"]),
        ["query", _] => Some(&["GET", "HEAD", "PUT", "DELETE"]),
        ["query", _, "execute" | "explain"] => GET,
        ["coordinate", "datacenters" | "nodes"] | ["coordinate", "node", _] => GET,
        _ => None,
    }
}
