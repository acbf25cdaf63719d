//! Carries a tree out over a value.

use serde_json::{Map, Value};

use super::parser::{Base, Node, Operand, Pipeline};
use super::{Error, functions};

/// Fields whose keys are the user's or the network's, not ours: a missing one is no mistake.
pub(super) const OPEN: [&str; 15] = [
    "Annotations",
    "Attributes",
    "Containers",
    "Data",
    "DriverOpts",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];

/// Fields of inspected things that docker leaves out of its JSON when they are empty, but knows in templates.
const OMITTED: [&str; 5] = ["Health", "Healthcheck", "OnBuild", "Shell", "StopTimeout"];

/// The same for fields that are texts.
const OMITTED_TEXTS: [&str; 2] = ["Driver", "Name"];

/// A result; `None` is a key that a map has not.
pub(super) type Found = Option<Value>;

/// What may be called on the outermost value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Methods<'a> {
    /// Nothing.
    None,
    /// `.Label "key"`, on a row of a listing.
    Row(&'a Map<String, Value>),
    /// The same on the headings, where functions hand their argument through.
    Heading,
}

/// Carries out a whole template.
pub(super) fn render(nodes: &[Node], dot: &Value, methods: Methods<'_>) -> Result<String, Error> {
    let mut run = Run {
        out: String::new(),
        variables: vec![(String::new(), Some(dot.clone()))],
        methods,
    };
    run.list(nodes, &Some(dot.clone()))?;
    Ok(run.out)
}

struct Run<'a> {
    out: String,
    /// The innermost last.
    variables: Vec<(String, Found)>,
    methods: Methods<'a>,
}

/// How a list of nodes was left.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Run<'_> {
    fn list(&mut self, nodes: &[Node], dot: &Found) -> Result<Flow, Error> {
        for node in nodes {
            let flow = match node {
                Node::Text(text) => {
                    self.out.push_str(text);
                    Flow::On
                }
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.out.push_str(&functions::text(&value));
                    }
                    Flow::On
                }
                Node::If(branches, otherwise) => self.branch(branches, otherwise, dot, false)?,
                Node::With(branches, otherwise) => self.branch(branches, otherwise, dot, true)?,
                Node::Range {
                    over,
                    body,
                    otherwise,
                } => self.range(over, body, otherwise, dot)?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn branch(
        &mut self,
        branches: &[(Pipeline, Vec<Node>)],
        otherwise: &[Node],
        dot: &Found,
        rebinds: bool,
    ) -> Result<Flow, Error> {
        let mark = self.variables.len();
        let mut chosen = (otherwise, dot.clone());
        for (condition, body) in branches {
            let value = self.pipeline(condition, dot)?;
            if functions::truth(&value) {
                chosen = (body, if rebinds { value } else { dot.clone() });
                break;
            }
        }
        let flow = self.list(chosen.0, &chosen.1)?;
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Found,
    ) -> Result<Flow, Error> {
        let mark = self.variables.len();
        let value = self.commands(over, dot)?;
        let items: Vec<(Value, Value)> = match value {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => {
                let numbered = items.into_iter().enumerate();
                numbered
                    .map(|(index, item)| (Value::from(index), item))
                    .collect()
            }
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, item)| (Value::String(key), item))
                .collect(),
            Some(Value::Number(number)) if number.is_i64() => (0..number.as_i64().unwrap_or(0))
                .map(|index| (Value::from(index), Value::from(index)))
                .collect(),
            Some(other) => {
                let message = format!("range can't iterate over {}", functions::text(&Some(other)));
                return Err(failure(over, &over.commands[0][0], message));
            }
        };
        if items.is_empty() {
            return self.list(otherwise, dot);
        }
        for (key, item) in items {
            let item = Some(item);
            match over.variables.as_slice() {
                [] => {}
                [value] => self.set(value, item.clone(), over.declares),
                [first, second, ..] => {
                    self.set(first, Some(key), over.declares);
                    self.set(second, item.clone(), over.declares);
                }
            }
            let flow = self.list(body, &item)?;
            self.variables.truncate(mark);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    /// The value of a pipeline, which its variable takes as well.
    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Found) -> Result<Found, Error> {
        let value = self.commands(pipeline, dot)?;
        if let Some(name) = pipeline.variables.first() {
            self.set(name, value.clone(), pipeline.declares);
        }
        Ok(value)
    }

    fn set(&mut self, name: &str, value: Found, declares: bool) {
        let known = self
            .variables
            .iter_mut()
            .rev()
            .find(|(known, _)| known == name);
        match known {
            Some(known) if !declares => known.1 = value,
            _ => self.variables.push((name.to_owned(), value)),
        }
    }

    fn commands(&self, pipeline: &Pipeline, dot: &Found) -> Result<Found, Error> {
        let mut piped = None;
        for command in &pipeline.commands {
            piped = Some(self.command(pipeline, command, dot, piped)?);
        }
        Ok(piped.flatten())
    }

    fn command(
        &self,
        pipeline: &Pipeline,
        command: &[Operand],
        dot: &Found,
        piped: Option<Found>,
    ) -> Result<Found, Error> {
        let (first, rest) = (&command[0], &command[1..]);
        let fail = |message| failure(pipeline, first, message);
        if let Base::Function(name) = &first.base {
            let arguments = self.arguments(name, pipeline, rest, dot, piped)?;
            if matches!(self.methods, Methods::Heading) && functions::passes_headings(name) {
                return Ok(arguments.into_iter().next().flatten());
            }
            return functions::call(name, &arguments).map_err(fail);
        }
        if rest.is_empty() && piped.is_none() {
            return self.operand(pipeline, first, dot);
        }
        let is_label = matches!(first.base, Base::Dot) && first.fields == ["Label"];
        let arguments = self.arguments("Label", pipeline, rest, dot, piped)?;
        match (is_label, self.methods, arguments.as_slice()) {
            (true, Methods::Row(labels), [Some(Value::String(key))]) => {
                Ok(Some(labels.get(key).cloned().unwrap_or_else(|| "".into())))
            }
            (true, Methods::Heading, [Some(Value::String(key))]) => {
                let word = key.rsplit('.').next().unwrap_or(key);
                Ok(Some(Value::String(word.replace(['-', '_'], " "))))
            }
            _ => Err(fail("can't give argument to non-function".to_owned())),
        }
    }

    /// The arguments of a call. `and` and `or` stop at the one that decides.
    fn arguments(
        &self,
        name: &str,
        pipeline: &Pipeline,
        operands: &[Operand],
        dot: &Found,
        piped: Option<Found>,
    ) -> Result<Vec<Found>, Error> {
        let mut arguments = Vec::new();
        for operand in operands {
            let value = self.operand(pipeline, operand, dot)?;
            let decides = match name {
                "and" => !functions::truth(&value),
                "or" => functions::truth(&value),
                _ => false,
            };
            arguments.push(value);
            if decides {
                return Ok(arguments);
            }
        }
        arguments.extend(piped);
        Ok(arguments)
    }

    fn operand(&self, pipeline: &Pipeline, operand: &Operand, dot: &Found) -> Result<Found, Error> {
        let mut value = match &operand.base {
            Base::Dot => dot.clone(),
            Base::Variable(name) => self
                .variables
                .iter()
                .rev()
                .find(|(known, _)| known == name)
                .and_then(|(_, value)| value.clone()),
            Base::Literal(value) => Some(value.clone()),
            Base::Nil => Some(Value::Null),
            Base::Group(inner) => self.commands(inner, dot)?,
            Base::Function(name) => {
                functions::call(name, &[]).map_err(|message| failure(pipeline, operand, message))?
            }
        };
        let mut before = "";
        for field in &operand.fields {
            value = self
                .take(value, before, field)
                .map_err(|message| failure(pipeline, operand, message))?;
            before = field;
        }
        Ok(value)
    }

    /// A field of a value; `before` is the field that the value is.
    fn take(&self, value: Found, before: &str, field: &str) -> Result<Found, String> {
        match value {
            Some(Value::Object(mut map)) => match map.remove(field) {
                Some(value) => Ok(Some(value)),
                None if OPEN.contains(&before) => Ok(None),
                None if !matches!(self.methods, Methods::None) => {
                    Err(format!("map has no entry for key {field:?}"))
                }
                None if OMITTED.contains(&field) => Ok(Some(Value::Null)),
                None if OMITTED_TEXTS.contains(&field) => Ok(Some("".into())),
                None => Err(format!("map has no entry for key {field:?}")),
            },
            None if OPEN.contains(&before) => Ok(None),
            None | Some(Value::Null) => Err(format!("nil pointer evaluating .{field}")),
            Some(other) => Err(format!(
                "can't evaluate field {field} in {}",
                functions::kind(&other)
            )),
        }
    }
}

fn failure(pipeline: &Pipeline, operand: &Operand, message: String) -> Error {
    Error::Execute {
        line: pipeline.line,
        at: operand.to_string(),
        message,
    }
}
