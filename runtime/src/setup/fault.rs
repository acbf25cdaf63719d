//! What goes wrong in the new process, and how the user is told.

use rustix::io::Errno;

use crate::failure;

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// Entering the cgroup.
    Cgroup,
    /// Joining a namespace.
    Namespace,
    /// Making a namespace.
    Unshare,
    /// Becoming root of a user namespace.
    UserNamespace,
    /// Talking with the parent.
    Handshake,
    /// Setting the propagation and binding the root.
    PrepareRoot,
    /// A mount of the spec.
    Mount,
    /// A device file or link in `/dev`.
    Device,
    /// A hook inside; the subject has its words.
    Hook,
    /// Changing the root.
    Pivot,
    /// The terminal.
    Console,
    /// Making the root read-only.
    ReadonlyRoot,
    /// A read-only path.
    ReadonlyPath,
    /// A masked path.
    MaskPath,
    /// The host or domain name.
    Hostname,
    /// A kernel parameter.
    Sysctl,
    /// The loopback interface.
    Network,
    /// The session keyring.
    Keyring,
    /// A label of SELinux.
    Label,
    /// A profile of AppArmor.
    AppArmor,
    /// A resource limit.
    Rlimit,
    /// Scheduling policy, I/O priority, personality.
    Scheduling,
    /// Capability sets.
    Capabilities,
    /// User and groups.
    User,
    /// The working directory.
    WorkingDirectory,
    /// The system call filter.
    Seccomp,
    /// Descriptors.
    Descriptors,
    /// Looking for the program.
    Program,
    /// Waiting for `start`.
    Start,
    /// Executing the program.
    Exec,
}

impl Step {
    /// Every step, for decoding.
    const ALL: [Self; 30] = [
        Self::Cgroup,
        Self::Namespace,
        Self::Unshare,
        Self::UserNamespace,
        Self::Handshake,
        Self::PrepareRoot,
        Self::Mount,
        Self::Device,
        Self::Hook,
        Self::Pivot,
        Self::Console,
        Self::ReadonlyRoot,
        Self::ReadonlyPath,
        Self::MaskPath,
        Self::Hostname,
        Self::Sysctl,
        Self::Network,
        Self::Keyring,
        Self::Label,
        Self::AppArmor,
        Self::Rlimit,
        Self::Scheduling,
        Self::Capabilities,
        Self::User,
        Self::WorkingDirectory,
        Self::Seccomp,
        Self::Descriptors,
        Self::Program,
        Self::Start,
        Self::Exec,
    ];
}

/// The call that gives a mount its id mapping, which is told in runc's words; the subject is the mount's source.
pub(super) const MAP_IDS: &str = "mount_setattr idmap";

/// What failed in the child: the step, the call, what it was about and the kernel's answer. No prose crosses the socket;
/// the words are put around it here, on the parent's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What it was doing.
    pub(crate) step: Step,
    /// The system call.
    pub(crate) call: String,
    /// A path, mostly.
    pub(crate) subject: String,
    /// The kernel's answer; 0 when the subject says it all.
    pub(crate) errno: i32,
}

impl std::error::Error for Fault {}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step,
            call,
            subject,
            errno,
        } = self;
        let errno_text = match *errno {
            0 => String::new(),
            errno => failure::text(Errno::from_raw_os_error(errno)),
        };
        let why = format!("{call}: {errno_text}");
        match step {
            Step::Cgroup => write!(formatter, "error entering cgroup {subject}: {why}"),
            Step::Namespace => write!(formatter, "error joining namespace {subject}: {why}"),
            Step::Unshare => write!(formatter, "error making namespace {subject}: {why}"),
            Step::UserNamespace => write!(
                formatter,
                "error becoming root of the user namespace: {why}"
            ),
            Step::Handshake => write!(formatter, "error talking with qrun: {why}"),
            Step::PrepareRoot => write!(formatter, "error preparing rootfs {subject:?}: {why}"),
            Step::Mount if call == MAP_IDS => {
                let hint = idmap_hint(*errno);
                write!(
                    formatter,
                    "failed to set MOUNT_ATTR_IDMAP on {subject}: {errno_text}{hint}"
                )
            }
            Step::Mount => {
                let hint = mount_hint(subject, *errno);
                write!(formatter, "error mounting {subject}: {why}{hint}")
            }
            Step::Device => write!(
                formatter,
                "error creating device nodes: {call} {subject}: {errno_text}"
            ),
            Step::Hook => formatter.write_str(subject),
            Step::Pivot => write!(formatter, "error jailing process inside rootfs: {why}"),
            Step::Console => write!(
                formatter,
                "error setting up console: {call} {subject}: {errno_text}"
            ),
            Step::ReadonlyRoot => write!(formatter, "error setting rootfs as readonly: {why}"),
            Step::ReadonlyPath => write!(formatter, "can't make {subject:?} read-only: {why}"),
            Step::MaskPath => write!(formatter, "can't mask path {subject:?}: {why}"),
            Step::Hostname => write!(formatter, "{call}: {errno_text}"),
            Step::Sysctl => write!(formatter, "can't set sysctl {subject}: {why}"),
            Step::Network => write!(formatter, "error bringing up the loopback interface: {why}"),
            Step::Keyring => write!(formatter, "unable to join session keyring: {why}"),
            Step::Label => write!(
                formatter,
                "unable to apply security label {subject:?}: {why}"
            ),
            Step::AppArmor => write!(
                formatter,
                "unable to apply apparmor profile: apparmor failed to apply profile {subject:?}: {errno_text}"
            ),
            Step::Rlimit => write!(
                formatter,
                "error setting rlimit type {subject}: {errno_text}"
            ),
            Step::Scheduling if *errno == 0 => formatter.write_str(subject),
            Step::Scheduling => write!(formatter, "unable to set {subject}: {why}"),
            Step::Capabilities => write!(formatter, "unable to apply caps: {why}"),
            Step::User if *errno == 0 => write!(formatter, "unable to setup user: {subject}"),
            Step::User => write!(
                formatter,
                "unable to setup user: {call} {subject}: {errno_text}"
            ),
            Step::WorkingDirectory if *errno == 0 => formatter.write_str(subject),
            Step::WorkingDirectory => {
                write!(
                    formatter,
                    "chdir to cwd ({subject:?}) set in config.json failed: {errno_text}"
                )
            }
            Step::Seccomp => write!(formatter, "error loading seccomp filter: {why}"),
            Step::Descriptors => {
                write!(formatter, "error marking descriptors close-on-exec: {why}")
            }
            Step::Program if *errno == Errno::NOENT.raw_os_error() && !subject.contains('/') => {
                write!(
                    formatter,
                    "exec: {subject:?}: executable file not found in $PATH"
                )
            }
            Step::Program if *errno == Errno::ACCESS.raw_os_error() => {
                write!(formatter, "exec: {subject:?}: {errno_text}")
            }
            Step::Program => write!(
                formatter,
                "exec: {subject:?}: {call} {subject}: {errno_text}"
            ),
            Step::Start => write!(formatter, "error waiting for start: {why}"),
            Step::Exec => write!(formatter, "exec {subject}: {errno_text}"),
        }
    }
}

/// What may be the reason that a mount cannot have an id mapping.
fn idmap_hint(errno: i32) -> &'static str {
    match Errno::from_raw_os_error(errno) {
        Errno::INVAL => " (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
        Errno::NOSYS => " (id-mapped mounts take Linux 5.12)",
        _ => "",
    }
}

/// What a mount that a user namespace may not make would take.
fn mount_hint(subject: &str, errno: i32) -> &'static str {
    if errno != Errno::PERM.raw_os_error() {
        ""
    } else if subject.starts_with("\"proc\" ") {
        " (in a user namespace this takes a pid namespace of its own, and a /proc outside of which nothing is hidden)"
    } else if subject.starts_with("\"sysfs\" ") {
        " (in a user namespace this takes a network namespace of its own; without one, bind /sys)"
    } else {
        ""
    }
}

/// Names step and subject in the error of a system call of the child.
pub(crate) trait At<T> {
    /// Says what was being done, by which call, on what.
    fn at(self, step: Step, call: &'static str, subject: &str) -> Result<T, Fault>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step, call: &'static str, subject: &str) -> Result<T, Fault> {
        self.map_err(|errno| Fault {
            step,
            call: call.into(),
            subject: subject.into(),
            errno: errno.raw_os_error(),
        })
    }
}

impl Fault {
    /// As a datagram's fields.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.step as u8];
        bytes.extend_from_slice(&self.errno.to_le_bytes());
        bytes.extend_from_slice(self.call.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.subject.as_bytes());
        bytes
    }

    /// From a datagram's fields.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (step, rest) = bytes.split_first()?;
        let step = *Step::ALL.get(usize::from(*step))?;
        let (errno, rest) = rest.split_first_chunk::<4>()?;
        let errno = Some(i32::from_le_bytes(*errno)).filter(|errno| (0..4096).contains(errno))?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Self {
            step,
            errno,
            call: text(&rest[..end]),
            subject: text(&rest[end + 1..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_decode_to_themselves() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(step as u8), index);
        }
        let fault = Fault {
            step: Step::Mount,
            call: "mount".into(),
            subject: "\"a\" to \"b\"".into(),
            errno: 2,
        };
        assert_eq!(Fault::decode(&fault.encode()), Some(fault));
        assert_eq!(Fault::decode(&[255, 0, 0, 0, 0, 0]), None);
        assert_eq!(Fault::decode(&[1, 0]), None);
    }

    #[test]
    fn faults_read_as_runc_says_it() {
        let missing = Err::<(), _>(Errno::NOENT)
            .at(Step::Program, "stat", "foo")
            .unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        let missing = Err::<(), _>(Errno::NOENT)
            .at(Step::Program, "stat", "/foo")
            .unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"/foo\": stat /foo: no such file or directory"
        );
    }

    #[test]
    fn an_id_mapping_is_told_with_what_may_be_wrong() {
        let refused = Err::<(), _>(Errno::INVAL)
            .at(Step::Mount, MAP_IDS, "/srv")
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "failed to set MOUNT_ATTR_IDMAP on /srv: invalid argument (maybe the filesystem used doesn't support idmap \
             mounts on this kernel?)"
        );
    }

    #[test]
    fn a_fault_without_error_number_is_its_subject() {
        let fault = Fault {
            step: Step::Hook,
            call: String::new(),
            subject: "it failed".into(),
            errno: 0,
        };
        assert_eq!(fault.to_string(), "it failed");
    }
}
