//! Building images: what comes out, what is remembered, and what a hostile context can't do.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stack_tests::command::Outcome;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "build",
        &[Need::Root],
        [
            the_forebears_dockerfile,
            the_whole_language,
            a_second_build_does_nothing,
            what_changes_is_done_again,
            an_ignore_file_hides_files,
            links_in_the_context_lead_nowhere,
            links_in_an_image_lead_nowhere,
            a_hostile_archive_stays_inside,
            the_hosts_environment_stays_outside,
            a_failing_command_leaves_nothing,
            a_cancelled_build_leaves_nothing,
            a_killed_build_leaves_nothing,
            two_builds_at_once,
            the_cache_outlives_its_image,
            errors_name_file_and_line,
            a_file_is_fetched,
            mounts_of_a_command,
        ]
    );
    all.extend(tests!(
        "build",
        &[
            Need::Root,
            Need::Host,
            Need::Program("docker-registry"),
            Need::Program("gcc"),
        ],
        [a_c_program_in_three_stages]
    ));
    all
}

/// An engine with the image `base`, and a context in `~/ctx`.
struct Yard {
    engine: Engine,
    context: PathBuf,
}

impl Yard {
    fn new() -> Self {
        let engine = Engine::new().with_base();
        let context = engine.directory().join("ctx");
        fs::create_dir(&context).unwrap();
        Self { engine, context }
    }

    fn write(&self, path: &str, content: &str) -> &Self {
        let path = self.context.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Builds the context with this Dockerfile.
    #[track_caller]
    fn build(&self, dockerfile: &str, arguments: &str) -> Outcome {
        self.write("Dockerfile", dockerfile);
        self.engine
            .run(&format!("build {arguments} {}", self.context.display()))
    }

    /// Runs a line in a container of `image`.
    #[track_caller]
    fn look(&self, image: &str, line: &str) -> String {
        self.engine
            .ok(&format!("run --rm --network none {image} sh -c '{line}'"))
    }

    /// Nothing is left of the steps: no container, no mount, no process; also none that `ps` would collect.
    #[track_caller]
    fn assert_clean(&self) {
        let containers = self.engine.root().join("containers");
        let names = fs::read_dir(containers).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        // A maker that was killed within its first microseconds leaves a directory that is collected by its age.
        let left: Vec<_> = names.filter(|name| !name.starts_with(".new-")).collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = self.engine.root().display().to_string();
        assert!(!mounts.contains(&root), "{mounts}");
    }
}

/// Runs a shell script, which must succeed.
#[track_caller]
fn script(text: &str) {
    let status = Command::new("sh")
        .args(["-e", "-c", text])
        .status()
        .unwrap();
    assert!(status.success(), "{text}");
}

fn the_forebears_dockerfile() {
    let yard = Yard::new();
    yard.write(
        "dockerfile",
        "FROM base\nRUN mkdir -p /srv && echo built > /srv/file\nWORKDIR /srv\nENTRYPOINT [\"cat\", \"file\"]\n",
    );
    let mut command = yard.engine.command("build -f dockerfile -t xx:0.01");
    let output = command.current_dir(&yard.context).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("STEP 2/4: RUN mkdir -p /srv"), "{said}");
    assert!(said.contains("Successfully tagged xx:0.01"), "{said}");
    assert_eq!(yard.engine.ok("run --rm --network none xx:0.01"), "built");
    yard.assert_clean();
}

const LANGUAGE: &str = r#"# syntax=example.com/never/fetched:1
ARG FROM=base
FROM $FROM AS first
ARG WHO=nobody
ENV GREETING="hello $WHO" OTHER=${NONE:-default}
RUN echo "$GREETING, $OTHER, $WHO" \
  # a comment inside
  > /greeting
RUN <<EOF
echo one > /lines
echo two >> /lines
EOF
COPY --chown=3:4 --chmod=640 src/*.txt /files/
ADD tree.tar.gz /tree/
COPY <<NAME <<"RAW" /inline/
for $WHO
NAME
for $WHO
RAW
WORKDIR /work
WORKDIR deeper
RUN pwd > here
USER 7:8
RUN id -u > /tmp/id
LABEL one=1 "two words"="2 3"
EXPOSE 80 53/udp
VOLUME /vol
STOPSIGNAL SIGINT
HEALTHCHECK --interval=1m CMD ["true"]
ONBUILD RUN echo from-base > /tmp/triggered
CMD ["cat", "/greeting"]
FROM first AS unneeded
RUN false
FROM first
SHELL ["/bin/sh", "-exc"]
RUN echo shell
"#;

fn the_whole_language() {
    let yard = Yard::new();
    yard.write("src/a.txt", "a\n").write("src/b.txt", "b\n");
    yard.write("src/c.c", "c\n").write("tree/leaf", "leaf\n");
    let context = yard.context.display();
    script(&format!(
        "tar -C {context}/tree -czf {context}/tree.tar.gz leaf"
    ));
    let outcome = yard.build(
        LANGUAGE,
        "-t lang -t other:2 --build-arg WHO=you --label three=3",
    );
    outcome.code(0).out("Successfully tagged other:2");
    assert!(!outcome.stdout.contains("RUN false"), "{}", outcome.stdout);
    assert!(
        outcome.stderr.contains("+ echo shell"),
        "{}",
        outcome.stderr
    );
    assert_eq!(
        yard.engine.ok("run --rm --network none lang"),
        "hello you, default, you"
    );
    let seen = yard.look(
        "other:2",
        "cat /lines /tree/leaf /inline/NAME /inline/RAW /work/deeper/here /tmp/id /tmp/triggered; \
         stat -c %u:%g:%a /files/a.txt; ls /files; pwd",
    );
    let expected = "one\ntwo\nleaf\nfor you\nfor $WHO\n/work/deeper\n7\nfrom-base\n3:4:640\na.txt\nb.txt\n/work/deeper";
    assert_eq!(seen, expected);
    let config = yard.engine.look("lang", "/Config");
    assert_eq!(config["Labels"]["two words"], "2 3");
    assert_eq!(config["Labels"]["three"], "3");
    assert_eq!(config["User"], "7:8");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Healthcheck"]["Interval"], 60_000_000_000_u64);
    assert!(config["ExposedPorts"]["53/udp"].is_object());
    assert!(config["Volumes"]["/vol"].is_object());
    assert!(config["OnBuild"].is_null(), "{config:#}");
    yard.assert_clean();
}

fn a_second_build_does_nothing() {
    let yard = Yard::new();
    for number in 0..200 {
        yard.write(&format!("many/{number}"), &format!("{number}\n"));
    }
    let dockerfile = "FROM base AS one\nRUN head -c 32 /dev/urandom > /random\nCOPY many /many/\n\
                      FROM scratch\nCOPY --from=one /random /\nWORKDIR /x\nENV A=1\n";
    let first = yard.build(dockerfile, "-t twice");
    first.code(0);
    let start = Instant::now();
    let second = yard.build(dockerfile, "-t twice");
    let took = start.elapsed();
    assert_eq!(
        second.ok().matches("--> Using cache").count(),
        5,
        "{}",
        second.stdout
    );
    assert_eq!(first.stdout.lines().last(), second.stdout.lines().last());
    // Milliseconds, on a machine that does nothing else.
    assert!(took < Duration::from_secs(3), "{took:?}");
    let third = yard.build(dockerfile, "-q --no-cache");
    assert_ne!(Some(third.ok()), first.stdout.lines().last());
}

fn what_changes_is_done_again() {
    let yard = Yard::new();
    yard.write("a", "one");
    let dockerfile = "FROM base\nARG V=1\nRUN echo $V > /v\nCOPY a /a\nRUN cat /a > /b\n";
    let cached = |outcome: Outcome| outcome.ok().matches("--> Using cache").count();
    yard.build(dockerfile, "-t c").code(0);
    assert_eq!(cached(yard.build(dockerfile, "-t c")), 4);
    // The same content at another time is the same file.
    yard.write("a", "one");
    assert_eq!(cached(yard.build(dockerfile, "-t c")), 4);
    yard.write("a", "two");
    assert_eq!(cached(yard.build(dockerfile, "-t c")), 2);
    assert_eq!(yard.look("c", "cat /b"), "two");
    assert_eq!(cached(yard.build(dockerfile, "-t c --build-arg V=2")), 1);
    assert_eq!(yard.look("c", "cat /v"), "2");
    let check = dockerfile.replace("COPY", "HEALTHCHECK CMD true\nCOPY");
    assert_eq!(cached(yard.build(&check, "-t c")), 2);
    script(&format!("chmod 755 {}/a", yard.context.display()));
    assert_eq!(cached(yard.build(dockerfile, "-t c")), 2);
}

fn an_ignore_file_hides_files() {
    let yard = Yard::new();
    for name in [
        "keep.c",
        "drop.o",
        "sub/drop.o",
        "sub/keep.c",
        "secret/key",
        "secret/public",
    ] {
        yard.write(name, name);
    }
    yard.write(
        ".dockerignore",
        "**/*.o\nsecret\n!secret/public\nDockerfile\n.dockerignore\n",
    );
    yard.build("FROM base\nCOPY . /all/\n", "-t ignoring")
        .code(0);
    assert_eq!(
        yard.look("ignoring", "cd /all; find . -type f | sort"),
        "./keep.c\n./secret/public\n./sub/keep.c"
    );
    let hidden = yard.build("FROM base\nCOPY secret/key /k\n", "");
    hidden
        .code(1)
        .err("Dockerfile:2")
        .err("ignore file excludes it");
}

fn links_in_the_context_lead_nowhere() {
    let yard = Yard::new();
    let secret = yard.engine.directory().join("secret");
    fs::write(&secret, "the host's\n").unwrap();
    symlink(&secret, yard.context.join("absolute")).unwrap();
    symlink("../secret", yard.context.join("relative")).unwrap();
    symlink("..", yard.context.join("up")).unwrap();
    for source in [
        "absolute",
        "relative",
        "up/secret",
        "../secret",
        "up/../../secret",
    ] {
        let outcome = yard.build(&format!("FROM base\nCOPY {source} /stolen\n"), "");
        outcome.code(1).err("there is no");
    }
    // In a directory they are copied as links.
    yard.build("FROM base\nCOPY . /all/\n", "-t links").code(0);
    assert!(
        yard.look("links", "cat /all/relative 2>&1 || true")
            .contains("No such file")
    );
    // The ignore file and the Dockerfile are the context's too (CVE-2022-4122).
    symlink(&secret, yard.context.join(".dockerignore")).unwrap();
    let ignoring = yard.build("FROM base\nCOPY . /all/\n", "");
    assert!(!(ignoring.stdout + &ignoring.stderr).contains("the host's"));
    fs::remove_file(yard.context.join("Dockerfile")).unwrap();
    symlink(&secret, yard.context.join("Dockerfile")).unwrap();
    let outcome = yard
        .engine
        .run(&format!("build {}", yard.context.display()));
    outcome.code(1).err("there is no Dockerfile");
}

fn links_in_an_image_lead_nowhere() {
    let yard = Yard::new();
    let outside = yard.engine.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "the host's").unwrap();
    yard.write("a", "mine");
    let evil = format!(
        "FROM base AS evil\nRUN ln -s {0} /out && ln -s / /root-link && ln -s /out/file /linked && ln -s ../../../../..{0} /up\n",
        outside.display()
    );
    // Written through (WORKDIR: CVE-2026-55686): the path is made in the image, or refused.
    for line in [
        "WORKDIR /out/made",
        "COPY a /out/file",
        "COPY a /out/new/file",
        "COPY a /linked",
        "COPY a /up/file",
        "ADD a /out/",
        "RUN echo x > /out/file || true",
    ] {
        yard.build(&format!("{evil}{line}\n"), "-q");
    }
    let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(
        fs::read_to_string(outside.join("file")).unwrap(),
        "the host's"
    );
    // Read through (CVE-2024-1753): a stage's `/` is the stage's.
    for source in ["/out/file", "/linked", "/up/file"] {
        let stolen = format!("{evil}FROM base\nCOPY --from=evil {source} /stolen\n");
        yard.build(&stolen, "").code(1).err("there is no");
    }
    let whole = format!("{evil}FROM base\nCOPY --from=evil /root-link /all\n");
    yard.build(&whole, "-t whole").code(0);
    let host = outside.join("file").display().to_string();
    assert_eq!(
        yard.look("whole", &format!("cat /all{host} 2>/dev/null || echo none")),
        "none"
    );
}

fn a_hostile_archive_stays_inside() {
    let yard = Yard::new();
    let outside = yard.engine.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    // A link that leads out, then a file through it; a name that climbs.
    script(&format!(
        "cd {0} && mkdir t && ln -s {1} t/link && tar -cf evil.tar -C t link && rm t/link && mkdir t/link \
         && echo x > t/link/file && tar -rf evil.tar -C t link/file && rm -r t \
         && echo x > y && tar --transform=s,y,../../../../../../climbed, -cPf up.tar y",
        yard.context.display(),
        outside.display()
    ));
    yard.build("FROM base\nADD evil.tar /in/\n", "-q");
    yard.build("FROM base\nADD up.tar /in/\n", "")
        .code(1)
        .err("unpack");
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    assert!(!Path::new("/climbed").exists());
    yard.assert_clean();
}

fn the_hosts_environment_stays_outside() {
    let yard = Yard::new();
    yard.write("Dockerfile", "FROM base\nARG GIVEN\nRUN env\n");
    let mut command = yard
        .engine
        .command("build --no-cache --build-arg GIVEN ~/ctx");
    let output = command
        .env("SECRET_TOKEN", "hush")
        .env("GIVEN", "asked-for")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(!said.contains("hush"), "{said}");
    assert!(said.contains("GIVEN=asked-for"), "{said}");
}

fn a_failing_command_leaves_nothing() {
    let yard = Yard::new();
    let outcome = yard.build(
        "FROM base\n\nRUN echo said; sleep 100 & exit 3\n",
        "-t failed",
    );
    outcome
        .code(1)
        .out("said")
        .err("Dockerfile:3")
        .err("exit code 3");
    assert!(!yard.engine.ok("images").contains("failed"));
    let missing = yard.build("FROM base\nRUN [\"/nope\"]\n", "");
    missing.code(1).err("/nope");
    let quiet = yard.build("FROM base\nRUN echo why >&2; false\n", "-q");
    quiet.code(1).err("why");
    yard.assert_clean();
    yard.engine.assert_nothing_left();
}

fn start(yard: &Yard, arguments: &str) -> std::process::Child {
    let mut command = yard.engine.command(&format!("build {arguments} ~/ctx"));
    let streams = command.stdin(Stdio::null()).stdout(Stdio::null());
    streams.stderr(Stdio::null()).spawn().unwrap()
}

fn is_at_work(yard: &Yard) -> bool {
    let root = yard.engine.root().join("containers");
    fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().join("merged/tmp/runs").exists())
}

fn a_cancelled_build_leaves_nothing() {
    let yard = Yard::new();
    yard.write("Dockerfile", "FROM base\nRUN touch /tmp/runs; sleep 1000\n");
    let mut child = start(&yard, "-t never");
    until("the command runs", || is_at_work(&yard).then_some(()));
    assert_eq!(
        yard.engine.ok("ps -a -q"),
        "",
        "a step is no container of the user's"
    );
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    yard.assert_clean();
    yard.engine.assert_nothing_left();
}

fn a_killed_build_leaves_nothing() {
    let yard = Yard::new();
    yard.write("a", "a");
    yard.write(
        "Dockerfile",
        "FROM base\nCOPY a /a\nRUN touch /tmp/runs; sleep 1000\n",
    );
    let mut child = start(&yard, "-t never");
    until("the command runs", || is_at_work(&yard).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    yard.engine.ok("ps");
    yard.assert_clean();
    yard.write(
        "Dockerfile",
        "FROM base\nCOPY a /a\nRUN cat /a > /b\nRUN cat /b > /c\n",
    );
    for moment in 0..20 {
        let mut child = start(&yard, "--no-cache -t moment");
        std::thread::sleep(Duration::from_millis(moment * 15));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    yard.engine.run("build --no-cache -t moment ~/ctx").code(0);
    assert_eq!(yard.look("moment", "cat /c"), "a");
    yard.assert_clean();
    yard.engine.assert_nothing_left();
}

fn two_builds_at_once() {
    let yard = Yard::new();
    yard.write(
        "Dockerfile",
        "FROM base\nRUN sleep 1; echo x > /x\nRUN cat /x > /y\n",
    );
    let mut children: Vec<_> = (0..3)
        .map(|number| start(&yard, &format!("-t at{number}")))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    for number in 0..3 {
        assert_eq!(yard.look(&format!("at{number}"), "cat /y"), "x");
    }
    yard.assert_clean();
}

fn the_cache_outlives_its_image() {
    let yard = Yard::new();
    let dockerfile = "FROM base\nRUN head -c 16 /dev/urandom > /random\n";
    let first = yard.build(dockerfile, "-q -t cached");
    let id = first.ok().to_owned();
    yard.engine.ok("rmi cached");
    let again = yard.build(dockerfile, "-q -t cached");
    assert_eq!(again.ok(), id, "the layer was still there");
    assert_eq!(yard.look("cached", "stat -c %s /random"), "16");
    yard.engine.ok("rmi cached");
    yard.engine.run("builder prune -f").code(0).out("reclaimed");
    assert_ne!(yard.build(dockerfile, "-q -t cached").ok(), id);
}

fn errors_name_file_and_line() {
    let yard = Yard::new();
    for (text, arguments, expected) in [
        (
            "FROM base\n\nRUNN x\n",
            "",
            "Dockerfile:3: unknown instruction RUNN; did you mean RUN?",
        ),
        ("FROM base\nCOPY nope /x\n", "", "there is no \"nope\" in"),
        (
            "FROM base\nCOPY Dockerfile Dockerfile /x\n",
            "",
            "end it with / to make it a directory",
        ),
        ("FROM base\nENV a=\"x\n", "", "is not closed"),
        (
            "FROM base\nCOPY --from=nope:1 a /b\n",
            "--pull=never",
            "nope:1 is not here",
        ),
        ("FROM base\n", "--target nope", "no stage \"nope\""),
        ("RUN x\n", "", "Dockerfile:1: there is no stage yet"),
        ("# nothing\n", "", "no FROM instruction"),
    ] {
        yard.build(text, arguments).code(1).err(expected);
    }
    let unused = yard.build("FROM base\n", "--build-arg NOPE=1");
    unused.code(0).err("not consumed: NOPE");
    yard.engine
        .run("build /nowhere/at/all")
        .code(1)
        .err("not a directory");
    yard.engine
        .run_with_input("build -q -", b"FROM base\nRUN true\n")
        .code(0)
        .out("sha256:");
}

/// Answers `count` requests of any kind with `body`, on a free port.
fn serve(body: &'static str, count: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(count) {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            let head = "HTTP/1.1 200 OK\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close";
            write!(
                stream,
                "{head}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        }
    });
    port
}

fn a_file_is_fetched() {
    let yard = Yard::new();
    let port = serve("fetched", 3);
    let dockerfile = format!("FROM base\nADD http://127.0.0.1:{port}/a/file.txt?x=1 /got/\n");
    yard.build(&dockerfile, "-t fetched").code(0);
    assert_eq!(
        yard.look(
            "fetched",
            "cat /got/file.txt; stat -c \" %a %Y\" /got/file.txt"
        ),
        "fetched 600 1445412480"
    );
    yard.build(&dockerfile, "-t fetched")
        .code(0)
        .out("Using cache");
    let wrong = dockerfile.replace("ADD", &format!("ADD --checksum=sha256:{}", "0".repeat(64)));
    yard.build(&wrong, "").code(1).err("--checksum wants");
    // Nobody answers any more.
    yard.build(&dockerfile, "").code(1).err("cannot fetch");
}

const MOUNTS: &str = "\
FROM base AS tool
RUN echo tool > /tool; ln -s / /everything
FROM base
RUN --mount=source=dir,target=/m cat /m/f; ls /m; touch /m/x 2>&1 || true
RUN --mount=source=dir,target=/m,rw touch /m/x
RUN --mount=from=tool,source=/tool,target=/t/tool cat /t/tool
RUN --mount=from=tool,source=/everything,target=/t cat /t/tool
RUN --mount=type=cache,target=/root/.cache/x,id=../../x echo x >> /root/.cache/x/n; wc -l < /root/.cache/x/n
RUN --mount=type=tmpfs,target=/scratch grep -c /scratch /proc/mounts
RUN --mount=type=secret,id=key --mount=type=secret,id=key,env=KEY cat /run/secrets/key; echo in $KEY
RUN find / -xdev -name m -o -name t -o -name scratch -o -name secrets -o -name .cache | grep -v proc || true
";

fn mounts_of_a_command() {
    let yard = Yard::new();
    yard.write("dir/f", "of the context\n")
        .write("dir/hidden", "hidden\n");
    yard.write(".dockerignore", "dir/hidden\n");
    let key = yard.engine.directory().join("key");
    fs::write(&key, "s3cr3t-words\n").unwrap();
    let arguments = format!("-t mounted --secret id=key,src={}", key.display());
    let outcome = yard.build(MOUNTS, &arguments);
    let lines: Vec<_> = outcome.ok().lines().collect();
    let said: Vec<_> = lines
        .iter()
        .filter(|line| !line.starts_with("STEP") && !line.starts_with("-->"))
        .copied()
        .collect();
    assert_eq!(
        said[..3],
        ["of the context", "f", "touch: /m/x: Read-only file system"]
    );
    // The stage's root is seen where the link in it leads, not the host's.
    assert_eq!(
        said[3..8],
        ["tool", "tool", "1", "1", "s3cr3t-words"],
        "{said:#?}"
    );
    assert_eq!(said[8], "in s3cr3t-words");
    assert!(
        said[9].starts_with("Successfully"),
        "left in the image: {said:#?}"
    );
    // Nothing but the first stage has made a layer.
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("-->")).count(),
        1,
        "{lines:#?}"
    );
    assert!(!yard.context.join("dir/x").exists());
    let again = yard.build(MOUNTS, &format!("--no-cache {arguments}"));
    assert!(
        again.ok().lines().any(|line| line == "2"),
        "the cache was kept"
    );
    let files = Command::new("grep")
        .args(["-rl", "s3cr3t-words"])
        .arg(yard.engine.root())
        .output()
        .unwrap();
    assert!(files.stdout.is_empty(), "{files:?}");
    yard.build(
        "FROM base\nRUN --mount=type=secret,id=key,required true\n",
        "",
    )
    .code(1)
    .err("secret key is required");
    yard.assert_clean();
}

/// Puts the machine's C compiler, as much of it as one small program needs, into a directory of the context.
fn copy_compiler(context: &Path) {
    let tools = "gcc $(gcc -print-prog-name=cc1) $(gcc -print-prog-name=collect2) \
                 $(gcc -print-prog-name=as) $(gcc -print-prog-name=ld) $(gcc -print-prog-name=lto-wrapper)";
    let libraries =
        "crt1.o crti.o crtn.o crtbeginT.o crtend.o libc.a libgcc.a libgcc_eh.a liblto_plugin.so";
    script(&format!(
        r#"cd {}
        tools=$(for tool in {tools}; do command -v "$tool"; done)
        {{
            for tool in $tools; do echo "$tool"; ldd "$tool" | grep -o '/[^ ]*' || true; done
            for part in {libraries}; do gcc -print-file-name=$part; done
            gcc -O2 -M hello.c | tr ' \\' '\n\n' | grep '^/'
        }} | sort -u | while read -r file; do
            # The image has a C library of its own.
            case $file in */libc.so.*|*/ld-linux*|*/libm.so.*) continue ;; esac
            place=toolchain/$(realpath -m -s "$file")
            mkdir -p "$(dirname "$place")"
            cp -L "$file" "$place"
        done"#,
        context.display()
    ));
}

fn a_c_program_in_three_stages() {
    let yard = Yard::new();
    yard.engine.pull_as("debian:nginx", "debian");
    yard.write(
        "hello.c",
        "#include <stdio.h>\nint main(void) { puts(\"hello from scratch\"); return 0; }\n",
    );
    copy_compiler(&yard.context);
    let dockerfile = "FROM debian AS compiler\nCOPY toolchain/ /\n\
                      FROM compiler AS build\nWORKDIR /src\nCOPY hello.c .\n\
                      RUN gcc -O2 -static -o hello hello.c && ./hello\n\
                      FROM scratch\nCOPY --from=build /src/hello /hello\nENTRYPOINT [\"/hello\"]\n";
    yard.build(dockerfile, "-t hello")
        .code(0)
        .out("hello from scratch");
    assert_eq!(
        yard.engine.ok("run --rm --network none hello"),
        "hello from scratch"
    );
    let start = Instant::now();
    let second = yard.build(dockerfile, "-t hello");
    let took = start.elapsed();
    assert_eq!(
        second.ok().matches("--> Using cache").count(),
        6,
        "{}",
        second.stdout
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    yard.assert_clean();
}
