//! A pod as the kubelet has one made: through containerd's CRI.

use std::path::PathBuf;
use std::process::Command;

use stack_tests::command::run;
use stack_tests::engine::Engine;
use stack_tests::grpc;
use stack_tests::peers::Containerd;
use stack_tests::programs::built;
use stack_tests::ttrpc::{Message, field};
use stack_tests::wait::until;

use super::wait_for_end;

/// The image of pods and containers: it sleeps.
const IMAGE: &str = "docker.io/library/nest:latest";

/// The namespace that CRI keeps everything in.
const NAMESPACE: &str = "k8s.io";

/// The network of the host: another one takes plugins.
const NODE: u8 = 2;

struct Cri {
    containerd: Containerd,
}

impl Cri {
    fn start() -> Self {
        let mut containerd = Containerd::start();
        let place = containerd.directory().to_owned();
        let options = format!(
            "BinaryName = \"{}\"\nRoot = \"{}\"\n",
            built("qrun").display(),
            place.join("qrun").display()
        );
        std::fs::write(place.join("qrun.toml"), options).unwrap();
        let mut import = Command::new("ctr");
        import.arg("--address").arg(place.join("sock"));
        import.args(["--namespace", NAMESPACE, "images", "import"]);
        run(import.arg(image(&containerd))).ok();
        // What was there when it started it knows without being told.
        containerd.restart_with_cri(&format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"qrun\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.qrun]\n\
             runtime_type = \"io.containerd.qrun.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.qrun.options]\nConfigPath = \"{}\"\n",
            place.join("qrun.toml").display()
        ));
        let cri = Self { containerd };
        until("CRI is ready", || {
            cri.call("Status", &Message::default()).ok()
        });
        cri
    }

    fn call(&self, method: &str, request: &Message) -> std::io::Result<Vec<u8>> {
        let path = self.containerd.directory().join("sock");
        grpc::call(
            &path,
            &format!("/runtime.v1.RuntimeService/{method}"),
            request,
        )
    }

    /// A call that must succeed.
    #[track_caller]
    fn ask(&self, method: &str, request: &Message) -> Vec<u8> {
        match self.call(method, request) {
            Ok(answer) => answer,
            Err(error) => {
                let log = std::fs::read_to_string(self.containerd.directory().join("log"));
                panic!("{error}; containerd says:\n{}", log.unwrap_or_default());
            }
        }
    }

    /// The id that an answer begins with.
    #[track_caller]
    fn made(&self, method: &str, request: &Message) -> String {
        let answer = self.ask(method, request);
        String::from_utf8(field(&answer, 1).unwrap().to_vec()).unwrap()
    }

    /// What a command says in a container, on both streams, and its code if that is not 0.
    fn exec(&self, container: &str, script: &str) -> (String, String, Option<u8>) {
        let request = Message::default().with(1, container);
        let request = ["/bin/sh", "-c", script]
            .into_iter()
            .fold(request, |request, word| request.with(2, word));
        let answer = self.ask("ExecSync", &request);
        let text = |number| {
            String::from_utf8_lossy(field(&answer, number).unwrap_or_default()).into_owned()
        };
        // The code is field 3, the last; here it has seven bits, and is left out if it is 0.
        let code = match answer[..] {
            [.., 0x18, code] => Some(code),
            _ => None,
        };
        (text(1), text(2), code)
    }
}

/// An archive of [`IMAGE`].
fn image(containerd: &Containerd) -> PathBuf {
    let engine = Engine::on_host().with_base();
    let file = containerd.directory().join("nest.tar");
    let directory = engine.directory().join("nest");
    std::fs::create_dir(&directory).unwrap();
    let text = "FROM base\nCMD [\"sleep\", \"1000\"]\n";
    std::fs::write(directory.join("Dockerfile"), text).unwrap();
    engine.ok("build -q -t nest ~/nest");
    engine.ok(&format!("save -o {} nest", file.display()));
    file
}

pub(super) fn a_pod_of_cri_has_one_shim() {
    let cri = Cri::start();
    let containerd = &cri.containerd;
    let name = containerd.namespace();
    let logs = containerd.directory().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let network = Message::default().with_number(1, NODE);
    let linux = Message::default()
        .with(1, format!("/{name}"))
        .with(2, Message::default().with(1, network));
    let pod = Message::default()
        .with(
            1,
            Message::default()
                .with(1, "nest")
                .with(2, &name)
                .with(3, "default"),
        )
        .with(3, logs.display().to_string())
        .with(8, linux);
    let request = Message::default().with(1, &pod).with(2, "qrun");
    let sandbox = cri.made("RunPodSandbox", &request);
    let [shim] = containerd.shims()[..] else {
        panic!("expected one shim: {:?}", containerd.shims());
    };
    let container = |name: &str, script: &str| {
        let words = ["/bin/sh", "-c", script].into_iter();
        let config = Message::default()
            .with(1, Message::default().with(1, name))
            .with(2, Message::default().with(1, IMAGE));
        let config = words.fold(config, |config, word| config.with(3, word));
        let config = config.with(11, format!("{name}.log"));
        let request = Message::default()
            .with(1, &sandbox)
            .with(2, config)
            .with(3, &pod);
        let id = cri.made("CreateContainer", &request);
        cri.ask("StartContainer", &Message::default().with(1, &id));
        id
    };
    let bird = container("bird", "echo sung; sleep 1000");
    let wren = container("wren", "echo hopped; exit 3");
    assert_eq!(containerd.shims(), [shim], "all of the pod are one shim's");
    for (file, text) in [("bird.log", " F sung\n"), ("wren.log", " F hopped\n")] {
        until(&format!("{file} has {text:?}"), || {
            let log = std::fs::read_to_string(logs.join(file)).ok()?;
            log.ends_with(text).then_some(())
        });
    }
    let said = cri.exec(&bird, "echo out; echo err >&2; exit 4");
    assert_eq!(said, ("out\n".into(), "err\n".into(), Some(4)));
    until("the end of wren is known", || {
        let answer = cri.ask("ContainerStatus", &Message::default().with(1, &wren));
        let status = field(&answer, 1).unwrap();
        // Field 3, the state: exited; and field 7, the code.
        let has = |what: [u8; 2]| status.windows(2).any(|bytes| bytes == what);
        (has([0x18, 2]) && has([0x38, 3])).then_some(())
    });
    // What containerd does after the end of one ends no other.
    assert_eq!(containerd.shims(), [shim]);
    assert_eq!(cri.exec(&bird, "echo still here").0, "still here\n");
    for id in [&wren, &bird] {
        let request = Message::default().with(1, id);
        cri.ask("StopContainer", &request);
        cri.ask("RemoveContainer", &request);
    }
    assert_eq!(containerd.shims(), [shim], "as long as the pod is there");
    let request = Message::default().with(1, &sandbox);
    cri.ask("StopPodSandbox", &request);
    cri.ask("RemovePodSandbox", &request);
    wait_for_end(containerd);
}
