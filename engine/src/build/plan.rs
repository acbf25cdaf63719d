//! Which stages there are, what each starts from, and which of them the target needs.
//!
//! Pure: no image is looked up here.

use std::collections::{BTreeMap, BTreeSet};

use bundle_tools::image::Platform;

use super::ParseError;
use super::instruction::{Copy, From, Instruction, Step};
use super::parse::Dockerfile;
use super::word;

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An image, as named.
    Image(String),
    /// An earlier stage.
    Stage(usize),
}

/// Where `COPY` takes its files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The context.
    Context,
    /// An earlier stage.
    Stage(usize),
    /// An image, as named.
    Image(String),
}

/// One `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: Option<String>,
    /// What it starts from.
    pub base: Base,
    /// `--platform`, variables replaced.
    pub platform: Option<String>,
    /// The line of its `FROM`.
    pub line: usize,
    /// The text of its `FROM`.
    pub text: String,
    /// Its instructions.
    pub steps: Vec<Step>,
}

/// A build, ready to be carried out.
#[derive(Debug)]
pub struct Plan {
    /// The character that escapes.
    pub escape: char,
    /// All stages, in the order of the file.
    pub stages: Vec<Stage>,
    /// Those that are needed, each after what it needs; the target is the last.
    pub order: Vec<usize>,
    /// Arguments before the first `FROM`, with their values.
    pub global: BTreeMap<String, String>,
    /// Arguments the file mentions somewhere.
    pub mentioned: BTreeSet<String>,
}

/// Makes the plan for building `target` (a name or a number; the last stage when absent).
///
/// # Errors
/// No stage at all, instructions before the first one, an unknown target, a stage that is used before it is there.
pub fn plan(
    file: Dockerfile,
    target: Option<&str>,
    build_args: &BTreeMap<String, String>,
    platform: &Platform,
) -> Result<Plan, ParseError> {
    let mut plan = Plan {
        escape: file.escape,
        stages: Vec::new(),
        order: Vec::new(),
        global: platform_args(platform),
        mentioned: BTreeSet::new(),
    };
    for name in plan.global.clone().into_keys() {
        if let Some(value) = build_args.get(&name) {
            plan.global.insert(name, value.clone());
        }
    }
    for step in file.steps {
        plan.add(step, build_args)?;
    }
    if plan.stages.is_empty() {
        return Err(ParseError {
            line: 1,
            message:
                "there is no FROM instruction: a build starts with `FROM IMAGE`, or `FROM scratch`"
                    .to_owned(),
        });
    }
    let target = match target {
        None => plan.stages.len() - 1,
        Some(name) => plan
            .stage(name, plan.stages.len())
            .ok_or_else(|| ParseError {
                line: 0,
                message: format!("there is no stage {name:?}{}", plan.known_names()),
            })?,
    };
    plan.need(target);
    Ok(plan)
}

/// The arguments that every Dockerfile can use in `FROM`, and in a stage after declaring them.
fn platform_args(target: &Platform) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("TARGET", target), ("BUILD", &Platform::host())] {
        args.insert(format!("{prefix}PLATFORM"), platform.to_string());
        args.insert(format!("{prefix}OS"), platform.os.clone());
        args.insert(format!("{prefix}ARCH"), platform.architecture.clone());
        let variant = platform.variant.clone().unwrap_or_default();
        args.insert(format!("{prefix}VARIANT"), variant);
    }
    args
}

impl Plan {
    fn add(&mut self, step: Step, build_args: &BTreeMap<String, String>) -> Result<(), ParseError> {
        let at = |message: String| ParseError {
            line: step.line,
            message,
        };
        if let Instruction::Arg(args) = &step.instruction {
            self.mentioned
                .extend(args.iter().map(|(name, _)| name.clone()));
        }
        match (&step.instruction, self.stages.last_mut()) {
            (Instruction::From(from), _) => {
                let stage = self.new_stage(from, &step).map_err(at)?;
                self.stages.push(stage);
            }
            (Instruction::Arg(args), None) => {
                for (name, default) in args {
                    let value = match (build_args.get(name), default) {
                        (Some(value), _) => Some(value.clone()),
                        (None, Some(default)) => Some(self.expand(default).map_err(at)?),
                        (None, None) => None,
                    };
                    if let Some(value) = value {
                        self.global.insert(name.clone(), value);
                    }
                }
            }
            (_, Some(stage)) => stage.steps.push(step),
            (_, None) => {
                return Err(at(
                    "there is no stage yet: only ARG can stand before the first FROM".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        word::expand(text, self.escape, &|name| self.global.get(name).cloned())
            .map_err(|error| error.to_string())
    }

    fn new_stage(&self, from: &From, step: &Step) -> Result<Stage, String> {
        let image = self.expand(&from.image)?;
        if image.is_empty() {
            return Err(format!(
                "the image's name is empty after replacing the variables of {:?}; an ARG before \
                 the first FROM gives them a value",
                from.image
            ));
        }
        let base = if image == "scratch" {
            Base::Scratch
        } else {
            match self.named(&image, self.stages.len()) {
                Some(stage) => Base::Stage(stage),
                None => Base::Image(image),
            }
        };
        let platform = from.platform.as_deref();
        Ok(Stage {
            name: from.name.clone(),
            base,
            platform: platform.map(|text| self.expand(text)).transpose()?,
            line: step.line,
            text: step.text.clone(),
            steps: Vec::new(),
        })
    }

    /// The latest stage of that name before `end`.
    fn named(&self, name: &str, end: usize) -> Option<usize> {
        let name = name.to_ascii_lowercase();
        self.stages[..end]
            .iter()
            .rposition(|stage| stage.name.as_deref() == Some(&name))
    }

    /// The stage of that name or number before `end`.
    fn stage(&self, text: &str, end: usize) -> Option<usize> {
        self.named(text, end)
            .or_else(|| text.parse().ok().filter(|&number: &usize| number < end))
    }

    fn known_names(&self) -> String {
        let names: Vec<&str> = self
            .stages
            .iter()
            .filter_map(|stage| stage.name.as_deref())
            .collect();
        if names.is_empty() {
            format!("; there are the stages 0 to {}", self.stages.len() - 1)
        } else {
            format!("; there are {}", names.join(", "))
        }
    }

    /// Where a `COPY` in stage `current` takes its files from.
    #[must_use]
    pub fn origin(&self, copy: &Copy, current: usize) -> Origin {
        self.origin_of(copy.from.as_deref(), current)
    }

    /// What `from` means in stage `current`.
    #[must_use]
    pub fn origin_of(&self, from: Option<&str>, current: usize) -> Origin {
        match from {
            None => Origin::Context,
            Some(from) => match self.stage(from, current) {
                Some(stage) => Origin::Stage(stage),
                None => Origin::Image(from.to_owned()),
            },
        }
    }

    /// Depth first; a stage depends on earlier ones only, so it ends.
    fn need(&mut self, stage: usize) {
        if self.order.contains(&stage) {
            return;
        }
        let mut needs: Vec<usize> = Vec::new();
        if let Base::Stage(base) = self.stages[stage].base {
            needs.push(base);
        }
        for step in &self.stages[stage].steps {
            let origins: Vec<Origin> = match &step.instruction {
                Instruction::Copy(copy) => vec![self.origin(copy, stage)],
                Instruction::Run(run) => {
                    let mounts = run.mounts.iter();
                    mounts
                        .map(|mount| self.origin_of(mount.from.as_deref(), stage))
                        .collect()
                }
                _ => Vec::new(),
            };
            needs.extend(origins.into_iter().filter_map(|origin| match origin {
                Origin::Stage(stage) => Some(stage),
                _ => None,
            }));
        }
        for need in needs {
            self.need(need);
        }
        self.order.push(stage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::parse::parse;

    fn planned(text: &str, target: Option<&str>) -> Result<Plan, ParseError> {
        let args = BTreeMap::from([("V".to_owned(), "2".to_owned())]);
        plan(parse(text).unwrap(), target, &args, &Platform::host())
    }

    const FILE: &str = "ARG V=1\nARG I=debian:$V\nFROM $I AS Build\nRUN a\nFROM scratch AS unused\n\
                        FROM build AS test\nFROM scratch\nCOPY --from=build /a /\nCOPY --from=2 /b /\n\
                        COPY --from=alpine:3 /c /\n";

    #[test]
    fn only_what_is_needed_is_built() {
        let plan = planned(FILE, None).unwrap();
        assert_eq!(plan.stages[0].base, Base::Image("debian:2".into()));
        assert_eq!(plan.stages[2].base, Base::Stage(0));
        assert_eq!(plan.order, [0, 2, 3]);
        let origin = |at: usize| match &plan.stages[3].steps[at].instruction {
            Instruction::Copy(copy) => plan.origin(copy, 3),
            other => panic!("{other:?}"),
        };
        assert_eq!(origin(0), Origin::Stage(0));
        assert_eq!(origin(1), Origin::Stage(2));
        assert_eq!(origin(2), Origin::Image("alpine:3".into()));
        assert_eq!(planned(FILE, Some("BUILD")).unwrap().order, [0]);
        assert_eq!(planned(FILE, Some("1")).unwrap().order, [1]);
    }

    #[test]
    fn errors_say_what_to_do() {
        for (text, target, expected) in [
            ("ARG a", None, "there is no FROM"),
            ("RUN a\nFROM b", None, "only ARG can stand before"),
            ("FROM $X", None, "empty after replacing"),
            (FILE, Some("nope"), "there are build, unused, test"),
            ("FROM a", Some("3"), "the stages 0 to 0"),
        ] {
            let error = planned(text, target).unwrap_err();
            assert!(error.message.contains(expected), "{error:?}");
        }
    }
}
