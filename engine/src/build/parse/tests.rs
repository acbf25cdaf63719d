use super::*;

fn one(text: &str) -> Instruction {
    let mut file = parse(text).unwrap();
    assert_eq!(file.steps.len(), 1, "{text}");
    file.steps.remove(0).instruction
}

fn message(text: &str) -> String {
    let error = parse(text).unwrap_err();
    format!("{}: {}", error.line, error.message)
}

fn exec(words: &[&str]) -> Command {
    Command::Exec(words.iter().map(|&word| word.to_owned()).collect())
}

#[test]
fn instructions_are_understood() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let cases = [
        (
            "FROM --platform=linux/arm64 a:1 AS Build",
            Instruction::From(From {
                image: "a:1".into(),
                name: Some("build".into()),
                platform: Some("linux/arm64".into()),
            }),
        ),
        (
            "run --network=none echo  hi",
            Instruction::Run(Run {
                command: Command::Shell("echo  hi".into()),
                network: Some("none".into()),
                mounts: Vec::new(),
                heredocs: Vec::new(),
            }),
        ),
        (
            "CMD [\"a\", \"b c\"]",
            Instruction::Cmd(exec(&["a", "b c"])),
        ),
        (
            "CMD ['a']",
            Instruction::Cmd(Command::Shell("['a']".into())),
        ),
        ("CMD []", Instruction::Cmd(exec(&[]))),
        (
            "ENTRYPOINT top -b",
            Instruction::Entrypoint(Command::Shell("top -b".into())),
        ),
        (
            "ENV a=1 b=\"x y\"",
            Instruction::Env(vec![pair("a", "1"), pair("b", "\"x y\"")]),
        ),
        ("ENV a 1 b=2", Instruction::Env(vec![pair("a", "1 b=2")])),
        (
            "ARG a b=1",
            Instruction::Arg(vec![("a".into(), None), ("b".into(), Some("1".into()))]),
        ),
        ("WORKDIR /a b", Instruction::Workdir("/a b".into())),
        (
            "VOLUME /a /b",
            Instruction::Volume(vec!["/a".into(), "/b".into()]),
        ),
        (
            "VOLUME [\"/a b\"]",
            Instruction::Volume(vec!["/a b".into()]),
        ),
        (
            "SHELL [\"/bin/bash\",\"-c\"]",
            Instruction::Shell(vec!["/bin/bash".into(), "-c".into()]),
        ),
        ("ONBUILD run x", Instruction::OnBuild("run x".into())),
        (
            "COPY --from=0 --chown=1:2 --chmod=755 a b /c/",
            Instruction::Copy(Copy {
                sources: vec!["a".into(), "b".into()],
                destination: "/c/".into(),
                from: Some("0".into()),
                chown: Some("1:2".into()),
                chmod: Some("755".into()),
                ..Copy::default()
            }),
        ),
        (
            "ADD [\"a b\", \"/c\"]",
            Instruction::Add(Copy {
                sources: vec!["a b".into()],
                destination: "/c".into(),
                ..Copy::default()
            }),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(one(text), expected, "{text}");
    }
}

#[test]
fn heredocs_belong_to_their_instruction() {
    let Instruction::Run(run) = one("RUN <<EOF sh\necho hi\nEOF") else {
        panic!()
    };
    assert_eq!(run.heredocs[0].content, "echo hi\n");
    let Instruction::Copy(copy) = one("COPY <<a b /d/\nx\na") else {
        panic!()
    };
    assert_eq!(copy.sources, ["b"]);
    assert_eq!(copy.heredocs[0].name, "a");
}

#[test]
fn health_checks_have_times() {
    let Instruction::Healthcheck(check) =
        one("HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=4 CMD curl x")
    else {
        panic!()
    };
    assert_eq!(check.interval, 90_000_000_000);
    assert_eq!(check.timeout, 1_500_000_000);
    assert_eq!(check.retries, 4);
    assert_eq!(check.test, ["CMD-SHELL", "curl x"]);
    assert_eq!(duration("500ms"), Some(500_000_000));
    for text in ["", "5", "s", "1y", "1s-"] {
        assert_eq!(duration(text), None, "{text}");
    }
}

#[test]
fn errors_name_the_line() {
    for (text, expected) in [
        (
            "FROM a\n\nRUNN x",
            "3: unknown instruction RUNN; did you mean RUN?",
        ),
        ("FROM a\nFROBNICATE x", "2: unknown instruction FROBNICATE"),
        ("FROM", "1: FROM takes at least one argument"),
        ("FROM a b", "1: FROM takes an image, and after AS a name"),
        (
            "COPY a",
            "1: COPY takes at least one source and a destination",
        ),
        ("COPY --frm=x a b", "1: COPY has no flag --frm"),
        ("ADD --from=x a b", "1: ADD has no flag --from"),
        ("ENV a", "1: ENV takes NAME=VALUE"),
        (
            "ENV a=1 b",
            "1: ENV: \"b\" is not NAME=VALUE; a value with spaces needs quotes",
        ),
        ("USER a b", "1: USER takes exactly one argument"),
        (
            "SHELL bash -c",
            "1: SHELL takes a JSON list, as in SHELL [\"/bin/bash\", \"-c\"]",
        ),
        ("ONBUILD FROM x", "1: ONBUILD can't have FROM"),
        (
            "ONBUILD HELLO x",
            "1: unknown instruction HELLO; did you mean SHELL?",
        ),
        (
            "HEALTHCHECK --interval=x CMD a",
            "1: HEALTHCHECK --interval=x: expected a time such as 30s or 1m30s",
        ),
    ] {
        assert_eq!(message(text), expected);
    }
}

#[test]
fn the_text_of_a_step_is_one_line() {
    let file = parse("FROM a\nrun  x \\\n   y").unwrap();
    assert_eq!(file.steps[1].text, "RUN x y");
    assert_eq!(file.steps[1].line, 2);
}
