//! What the API documents of a type is what a script may read of it: a misspelt field of a record is an error with "did you
//! mean", at any depth, and one that is merely not set is nil. Names that users chose (labels, ports) are free.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use mlua::{Lua, Table, Value as LuaValue};
use schemars::JsonSchema;
use serde_json::Value;

use crate::model::suggest;
use crate::script::value::from_json;

/// The schemas of a VM by the types' names.
#[derive(Default)]
struct Known(RefCell<HashMap<String, Rc<Shapes>>>);

/// One type's schema, and the metatables of the tables in it by the place of their schema.
struct Shapes {
    schema: Value,
    metas: RefCell<HashMap<usize, Table>>,
}

/// A record of type `T`, already as JSON, as a Lua value that knows its fields.
pub fn shaped<T: JsonSchema>(lua: &Lua, value: &Value) -> mlua::Result<LuaValue> {
    if !matches!(value, Value::Object(_) | Value::Array(_)) {
        return from_json(lua, value);
    }
    let shapes = shapes_of::<T>(lua);
    shapes.convert(lua, value, &shapes.expand(&shapes.schema))
}

fn shapes_of<T: JsonSchema>(lua: &Lua) -> Rc<Shapes> {
    let known = match lua.app_data_ref::<Rc<Known>>() {
        Some(known) => known.clone(),
        None => {
            let known = Rc::new(Known::default());
            lua.set_app_data(known.clone());
            known
        }
    };
    let mut known = known.0.borrow_mut();
    let shapes = known.entry(T::schema_id().into_owned()).or_insert_with(|| {
        // As it is written, not as it may be given: what has a default is there.
        let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
        let schema = settings.into_generator().into_root_schema_for::<T>().to_value();
        Rc::new(Shapes { schema, metas: RefCell::default() })
    });
    shapes.clone()
}

impl Shapes {
    // The plain schemas that one stands for: references followed, alternatives spread out.
    fn expand<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let mut plain = Vec::new();
        self.expand_into(schema, &mut plain, 0);
        plain
    }

    fn expand_into<'a>(&'a self, schema: &'a Value, plain: &mut Vec<&'a Value>, depth: usize) {
        if depth > 16 {
            return;
        }
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
            if let Some(definition) = self.schema.get("$defs").and_then(|all| all.get(name)) {
                self.expand_into(definition, plain, depth + 1);
            }
        } else {
            plain.push(schema);
        }
        for word in ["anyOf", "oneOf", "allOf"] {
            for inner in schema.get(word).and_then(Value::as_array).into_iter().flatten() {
                self.expand_into(inner, plain, depth + 1);
            }
        }
    }

    fn convert(&self, lua: &Lua, value: &Value, schemas: &[&Value]) -> mlua::Result<LuaValue> {
        match value {
            Value::Array(list) => {
                let items: Vec<&Value> = schemas
                    .iter()
                    .filter_map(|schema| schema.get("items"))
                    .flat_map(|items| self.expand(items))
                    .collect();
                let table = lua.create_table_with_capacity(list.len(), 0)?;
                for (at, value) in list.iter().enumerate() {
                    table.raw_set(at + 1, self.convert(lua, value, &items)?)?;
                }
                Ok(LuaValue::Table(table))
            }
            Value::Object(map) => {
                let table = lua.create_table_with_capacity(0, map.len())?;
                for (key, value) in map {
                    let inner: Vec<&Value> = schemas
                        .iter()
                        .filter_map(|schema| field(schema, key))
                        .flat_map(|schema| self.expand(schema))
                        .collect();
                    table.raw_set(key.as_str(), self.convert(lua, value, &inner)?)?;
                }
                if let Some(meta) = self.meta(lua, schemas)? {
                    table.set_metatable(Some(meta))?;
                }
                Ok(LuaValue::Table(table))
            }
            other => from_json(lua, other),
        }
    }

    // The type's name in words.
    fn name_of(&self, schema: &Value) -> String {
        let definitions = self.schema.get("$defs").and_then(Value::as_object).into_iter().flatten();
        let name = definitions.filter(|(_, one)| std::ptr::eq(*one, schema)).map(|(name, _)| name.as_str()).next();
        let name = name.or_else(|| schema.get("title")?.as_str()).unwrap_or("this table");
        let mut words = String::with_capacity(name.len() + 4);
        for letter in name.chars() {
            if letter.is_uppercase() && !words.is_empty() {
                words.push(' ');
            }
            words.extend(letter.to_lowercase());
        }
        words
    }

    // What refuses names that no record of these schemas has; none where names are free.
    fn meta(&self, lua: &Lua, schemas: &[&Value]) -> mlua::Result<Option<Table>> {
        let Some(first) = schemas.iter().find(|schema| schema.get("properties").is_some()) else { return Ok(None) };
        let place = std::ptr::from_ref::<Value>(first).addr();
        if let Some(meta) = self.metas.borrow().get(&place) {
            return Ok(Some(meta.clone()));
        }
        let is_free = |schema: &&Value| match schema.get("additionalProperties") {
            Some(Value::Bool(free)) => *free,
            Some(_) => true,
            None => schema.get("type").is_some_and(|kind| kind == "object") && schema.get("properties").is_none(),
        };
        if schemas.iter().any(is_free) {
            return Ok(None);
        }
        let names = schemas.iter().filter_map(|schema| schema.get("properties")?.as_object());
        let known: BTreeSet<String> = names.flat_map(|fields| fields.keys().cloned()).collect();
        let what = self.name_of(first);
        let index = lua.create_function(move |_, (_, key): (Table, LuaValue)| {
            let LuaValue::String(key) = key else { return Ok(LuaValue::Nil) };
            let key = key.to_string_lossy();
            if known.contains(&key) {
                return Ok(LuaValue::Nil);
            }
            let hint = suggest::hint(&key, known.iter().map(String::as_str));
            Err(mlua::Error::runtime(format!("{what} has no field \"{key:.60}\"{hint}")))
        })?;
        let meta = lua.create_table()?;
        meta.raw_set("__index", index)?;
        // Not hidden, so that `table.clone` gives a copy that knows its fields as well.
        meta.set_readonly(true);
        self.metas.borrow_mut().insert(place, meta.clone());
        Ok(Some(meta))
    }
}

fn field<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema.get("properties").and_then(|fields| fields.get(key)).or_else(|| schema.get("additionalProperties"))
}

#[cfg(test)]
mod tests {
    use crate::model::cron::{CronRun, Outcome};
    use crate::model::service::ServiceSpec;
    use crate::script::value::from_record;

    fn fails(lua: &mlua::Lua, code: &str) -> String {
        lua.load(code).exec().unwrap_err().to_string()
    }

    #[test]
    fn a_record_knows_its_fields_and_leaves_the_users_names_free() {
        let lua = mlua::Lua::new();
        let given = serde_json::json!({
            "name": "web", "command": ["a"], "env": { "A": "1" }, "labels": { "x": "y" },
            "check": { "http": "/", "every": "5s" }, "rollout": { "use": "rolling", "batch": 2 },
            "networks": ["back"], "secrets": { "key": "shop/key" },
        });
        let spec: ServiceSpec = crate::model::strict::read("service", &given).unwrap();
        lua.globals().set("spec", from_record(&lua, &spec).unwrap()).unwrap();
        lua.load(
            r##"
            assert(spec.name == "web" and spec.env.A == "1" and spec.env.B == nil and spec.labels.z == nil)
            assert(spec.image == nil and spec.check.tcp == nil and spec.command[2] == nil and #spec.command == 1)
            spec.image = "x"; spec.new = 1
            assert(spec.image == "x" and spec.new == 1)
            assert(spec.rollout.batch == 2 and spec.rollout.delay == nil)
            assert(spec.networks[1].name == "back" and spec.networks[1].aliases == nil and spec.secrets.key.uid == nil)
            local copy = table.clone(spec)
            copy.image = "y"
            assert(copy.image == "y" and spec.image == "x" and not pcall(function() return copy.imge end))
            "##,
        )
        .exec()
        .unwrap();
        assert!(fails(&lua, "return spec.imge").contains(r#"has no field "imge"; did you mean "image"?"#));
        assert!(
            fails(&lua, "return spec.check.evry").contains(r#"check spec has no field "evry"; did you mean "every"?"#)
        );
    }

    #[test]
    fn lists_know_theirs_and_null_is_nil() {
        let lua = mlua::Lua::new();
        let run = CronRun {
            number: 1,
            due_at: None,
            started_at: crate::model::clock::Timestamp(1),
            finished_at: None,
            outcome: Outcome::Ok,
            by: None,
            bundle: String::new(),
            output: "x".into(),
        };
        lua.globals().set("runs", from_record(&lua, &vec![run.clone(), run]).unwrap()).unwrap();
        lua.load("assert(#runs == 2 and runs[2].output == 'x' and runs[1].by == nil and runs[3] == nil)")
            .exec()
            .unwrap();
        let said = fails(&lua, "return runs[2].outptu");
        assert!(said.contains(r#"cron run has no field "outptu"; did you mean "output"?"#), "{said}");
    }
}
