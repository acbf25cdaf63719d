//! criu's requests and answers, with the field numbers of its `images/rpc.proto`.

use super::wire::{Message, Value, fields};

/// What a request asks for, and what an answer answers: `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Write a checkpoint.
    Dump,
    /// Make processes of a checkpoint.
    Restore,
    /// Write memory only, and let the processes go on.
    PreDump,
    /// A moment has come at which something outside may be done.
    Notify,
    /// Tell whether the kernel has features.
    FeatureCheck,
    /// Tell the version.
    Version,
    /// Something else.
    Other(u32),
}

impl Kind {
    /// The enumerator.
    fn number(self) -> u32 {
        match self {
            Self::Dump => 1,
            Self::Restore => 2,
            Self::PreDump => 4,
            Self::Notify => 6,
            Self::FeatureCheck => 9,
            Self::Version => 10,
            Self::Other(number) => number,
        }
    }

    /// The enumerator's meaning.
    fn of(number: i32) -> Self {
        match number {
            1 => Self::Dump,
            2 => Self::Restore,
            4 => Self::PreDump,
            6 => Self::Notify,
            9 => Self::FeatureCheck,
            10 => Self::Version,
            other => Self::Other(u32::try_from(other).unwrap_or(0)),
        }
    }
}

impl std::fmt::Display for Kind {
    /// The enumerator's name, as criu and runc print it.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dump => formatter.write_str("DUMP"),
            Self::Restore => formatter.write_str("RESTORE"),
            Self::PreDump => formatter.write_str("PRE_DUMP"),
            Self::Notify => formatter.write_str("NOTIFY"),
            Self::FeatureCheck => formatter.write_str("FEATURE_CHECK"),
            Self::Version => formatter.write_str("VERSION"),
            Self::Other(number) => write!(formatter, "{number}"),
        }
    }
}

/// Which cgroup settings criu saves and brings back: `criu_cg_mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CgroupMode {
    /// None; processes stay where they are put.
    Ignore,
    /// Those of cgroups that criu has to make.
    Soft,
    /// All.
    Full,
    /// All, and the cgroups must not exist.
    Strict,
    /// What criu does when it is not told.
    #[default]
    Default,
}

impl CgroupMode {
    /// The mode of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "" => Self::Default,
            "soft" => Self::Soft,
            "full" => Self::Full,
            "strict" => Self::Strict,
            "ignore" => Self::Ignore,
            _ => return None,
        })
    }

    fn number(self) -> u32 {
        match self {
            Self::Ignore => 0,
            Self::Soft => 3,
            Self::Full => 4,
            Self::Strict => 5,
            Self::Default => 6,
        }
    }
}

/// A switch of `criu_opts`, by field number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    LeaveRunning = 3,
    ExtUnixSk = 4,
    TcpEstablished = 5,
    EvasiveDevices = 6,
    ShellJob = 7,
    FileLocks = 8,
    NotifyScripts = 12,
    TrackMem = 15,
    AutoDedup = 16,
    LinkRemap = 18,
    /// Obsolete beside the mode; older versions want it.
    ManageCgroups = 24,
    RstSibling = 26,
    TcpSkipInFlight = 46,
    LazyPages = 48,
    OrphanPtsMaster = 50,
}

/// A text of `criu_opts`, by field number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    LogFile = 10,
    Root = 13,
    ParentImg = 14,
    External = 37,
    FreezeCgroup = 44,
    ConfigFile = 51,
    LsmProfile = 53,
    LsmMountContext = 63,
}

/// A number of `criu_opts`, by field number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    ImagesDirFd = 1,
    Pid = 2,
    LogLevel = 9,
    WorkDirFd = 17,
    EmptyNs = 38,
    StatusFd = 49,
}

/// `criu_opts`: what a dump or restore is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options(Message);

impl Options {
    /// Sets a switch.
    pub(super) fn switch(&mut self, switch: Switch, on: bool) -> &mut Self {
        self.0.switch(switch as u32, on);
        self
    }

    /// Sets a text, or adds one where there may be several.
    pub(super) fn text(&mut self, text: Text, value: &str) -> &mut Self {
        self.0.text(text as u32, value);
        self
    }

    /// Sets a number.
    pub(super) fn number(&mut self, number: Number, value: u32) -> &mut Self {
        self.0.number(number as u32, value);
        self
    }

    /// Sets how cgroups are treated.
    pub(super) fn cgroup_mode(&mut self, mode: CgroupMode) -> &mut Self {
        self.0.number(34, mode.number());
        self
    }

    /// Names a page server, which gets the memory instead of the image directory.
    pub(super) fn page_server(&mut self, address: &str, port: u32) -> &mut Self {
        let mut server = Message::default();
        server.text(1, address).number(2, port);
        self.0.message(11, &server);
        self
    }

    /// Adds a mount that is not part of the checkpoint. When dumping `value` is its name; when restoring `key` is its
    /// name, and `value` the file to bind there.
    pub(super) fn external_mount(&mut self, key: &str, value: &str) -> &mut Self {
        self.pair(23, key, value)
    }

    /// Sets the cgroup of a controller (empty for v2) below which the processes' cgroups are.
    pub(super) fn cgroup_root(&mut self, controller: &str, path: &str) -> &mut Self {
        self.pair(25, controller, path)
    }

    /// Adds a namespace that the processes join.
    pub(super) fn join_namespace(&mut self, kind: &str, file: &str) -> &mut Self {
        self.pair(39, kind, file)
    }

    /// Adds a descriptor of criu's that takes the place of one in the checkpoint.
    pub(super) fn inherit(&mut self, key: &str, descriptor: u32) -> &mut Self {
        let mut pair = Message::default();
        pair.text(1, key).number(2, descriptor);
        self.0.message(27, &pair);
        self
    }

    fn pair(&mut self, field: u32, first: &str, second: &str) -> &mut Self {
        let mut pair = Message::default();
        pair.text(1, first).text(2, second);
        self.0.message(field, &pair);
        self
    }
}

/// Features of the kernel and of criu: `criu_features`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Telling which memory was written to since the last dump.
    pub(super) mem_track: bool,
    /// Fetching memory after the restore, when it is first used.
    pub(super) lazy_pages: bool,
}

/// A request for a dump or restore.
pub(super) fn request(kind: Kind, options: &Options) -> Message {
    let mut request = Message::default();
    request.number(1, kind.number()).message(2, &options.0);
    request
}

/// A question for the version, after which the conversation goes on.
pub(super) fn version_request() -> Message {
    let mut request = Message::default();
    request.number(1, Kind::Version.number()).switch(4, true);
    request
}

/// A question for features, after which the conversation goes on.
pub(super) fn feature_request(wanted: Features) -> Message {
    let mut features = Message::default();
    if wanted.mem_track {
        features.switch(1, true);
    }
    if wanted.lazy_pages {
        features.switch(2, true);
    }
    let mut request = Message::default();
    request
        .number(1, Kind::FeatureCheck.number())
        .switch(4, true)
        .message(5, &features);
    request
}

/// The answer to a notification.
pub(super) fn notified(success: bool) -> Message {
    let mut request = Message::default();
    request.number(1, Kind::Notify.number()).switch(3, success);
    request
}

/// An answer: `criu_resp`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Response {
    /// What it answers, as a number.
    kind: i32,
    /// Whether that succeeded.
    pub(super) success: bool,
    /// Which moment has come, and the process it is about, 0 where it is about none.
    pub(super) notify: Option<(String, i32)>,
    /// Error number.
    pub(super) errno: i32,

    /// Features that are there.
    pub(super) features: Features,
    /// Version as one number: 3.17.1 is 31701, and a version between 4.1 and 4.2 counts as 4.2.
    pub(super) version: Option<u32>,
}

impl Response {
    /// Takes an answer apart; `None` when it is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut response = Self::default();
        for (field, value) in fields(bytes)? {
            match field {
                1 => response.kind = value.int32(),
                2 => response.success = value.is_true(),
                5 => response.notify = Some(notification(value)?),
                7 => response.errno = value.int32(),
                8 => {
                    for (field, value) in fields(value.bytes())? {
                        match field {
                            1 => response.features.mem_track = value.is_true(),
                            2 => response.features.lazy_pages = value.is_true(),
                            _ => {}
                        }
                    }
                }

                10 => response.version = Some(version(value)?),
                _ => {}
            }
        }
        Some(response)
    }

    /// What it answers.
    pub(super) fn kind(&self) -> Kind {
        Kind::of(self.kind)
    }
}

fn notification(value: Value<'_>) -> Option<(String, i32)> {
    let (mut script, mut pid) = (String::new(), 0);
    for (field, value) in fields(value.bytes())? {
        match field {
            1 => script = value.text(),
            2 => pid = value.int32(),
            _ => {}
        }
    }
    Some((script, pid))
}

fn version(value: Value<'_>) -> Option<u32> {
    let (mut major, mut minor, mut sublevel, mut between) = (0, 0, 0, false);
    for (field, value) in fields(value.bytes())? {
        let number = u32::try_from(value.int32()).unwrap_or(0).min(9999);
        match field {
            1 => major = number,
            2 => minor = number,
            3 => between = !value.bytes().is_empty(),
            4 => sublevel = number,
            _ => {}
        }
    }
    if between {
        // Built from between two releases: counts as the later one.
        (minor, sublevel) = (minor + 1, 0);
    }
    Some(major * 10_000 + minor * 100 + sublevel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_fields() {
        let mut options = Options::default();
        options
            .number(Number::ImagesDirFd, 5)
            .switch(Switch::LazyPages, true)
            .cgroup_mode(CgroupMode::Ignore)
            .external_mount("/a", "/b");
        let bytes = request(Kind::Dump, &options);
        let outer = fields(bytes.bytes()).unwrap();
        assert_eq!(outer[0], (1, Value::Number(1)));
        assert_eq!(outer[1].0, 2);
        let inner = fields(outer[1].1.bytes()).unwrap();
        assert_eq!(inner[0], (1, Value::Number(5)));
        assert_eq!(inner[1], (48, Value::Number(1)));
        assert_eq!(inner[2], (34, Value::Number(0)));
        assert_eq!(inner[3], (23, Value::Bytes(b"\x0a\x02/a\x12\x02/b")));
    }

    #[test]
    fn answers_are_understood() {
        let mut notify = Message::default();
        notify.text(1, "post-restore").number(2, 77);
        let mut answer = Message::default();
        answer.number(1, 6).switch(2, true).message(5, &notify);
        let response = Response::parse(answer.bytes()).unwrap();
        assert_eq!(response.kind(), Kind::Notify);
        assert!(response.success);
        assert_eq!(response.notify, Some(("post-restore".into(), 77)));
        assert_eq!(Response::parse(&[0xff]), None);
    }

    #[test]
    fn versions_are_one_number() {
        let answer = |gitid: Option<&str>, sublevel: u32| {
            let mut version = Message::default();
            version.number(1, 4).number(2, 2);
            if let Some(gitid) = gitid {
                version.text(3, gitid);
            }
            version.number(4, sublevel);
            let mut answer = Message::default();
            answer.number(1, 10).switch(2, true).message(10, &version);
            Response::parse(answer.bytes()).unwrap().version
        };
        assert_eq!(answer(None, 1), Some(40_201));
        assert_eq!(answer(Some("v4.2-7-g1"), 1), Some(40_300));
    }

    #[test]
    fn modes_by_name() {
        assert_eq!(CgroupMode::of("ignore"), Some(CgroupMode::Ignore));
        assert_eq!(CgroupMode::of(""), Some(CgroupMode::Default));
        assert_eq!(CgroupMode::of("hard"), None);
    }
}
