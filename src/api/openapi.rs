//! The OpenAPI description (version 3.1), made from the routes.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::routes;
use crate::model::Error;

/// Of routes that are answered though no daemon leads.
const OLD: &str = " While no daemon leads, a manager's daemon answers from memory where the header `neap-max-age` (seconds) allows it; `neap-age` says how old an answer is.";

/// The whole description.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    let error = generator.subschema_for::<Error>();
    let mut paths = serde_json::Map::new();
    for route in routes::all() {
        let mut parameters: Vec<Value> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        for (name, description) in route.query {
            parameters.push(
                json!({ "name": name, "in": "query", "description": description, "schema": { "type": "string" } }),
            );
        }
        let kind = if route.stream { "application/x-ndjson" } else { "application/json" };
        let mut ok = json!({ "description": route.summary });
        if let Some(schema) = route.response {
            ok["content"] = json!({ kind: { "schema": schema(&mut generator) } });
        }
        let mut operation = json!({
            "summary": route.summary,
            "description": format!("Needs the role {}.{}", route.need.as_str(), route.standing.map_or("", |_| OLD)),
            "operationId": format!("{} {}", route.method.to_lowercase(), route.path),
            "parameters": parameters,
            "responses": {
                "200": ok,
                "default": { "description": "An error", "content": { "application/json": { "schema": error } } },
            },
        });
        if let Some(schema) = route.request {
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema(&mut generator) } } });
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Neap control API", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{ "token": [] }],
    })
}
