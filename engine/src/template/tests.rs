//! Tables: template, and what it makes of one value.

use serde_json::{Value, json};

use super::Template;

fn value() -> Value {
    json!({
        "Id": "0123456789abcdef",
        "Name": "/web",
        "State": {"Status": "running", "Running": true, "Pid": 42, "ExitCode": 0},
        "Config": {
            "Labels": {"a.b/c": "x", "stage": "test"},
            "Cmd": ["sh", "-c", "echo hi"],
            "Env": ["A=1", "B=2"],
            "Entrypoint": null,
            "Image": "nginx:1.27",
        },
        "Mounts": [
            {"Source": "/a", "Destination": "/b", "RW": true},
            {"Source": "/c", "Destination": "/d", "RW": false},
        ],
        "NetworkSettings": {
            "Networks": {
                "back": {"IPAddress": "10.0.1.2"},
                "front": {"IPAddress": "10.0.0.2"},
            },
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "443/tcp": null},
        },
        "Size": 1234567,
        "Ratio": 0.5,
    })
}

fn render(template: &str) -> Result<String, String> {
    Template::parse(template)
        .and_then(|template| template.render(&value()))
        .map_err(|error| error.to_string())
}

#[test]
fn what_docker_users_type() {
    for (template, text) in [
        ("{{.Id}}", "0123456789abcdef"),
        ("{{ .State.Status }}!", "running!"),
        (
            "{{json .State}}",
            r#"{"ExitCode":0,"Pid":42,"Running":true,"Status":"running"}"#,
        ),
        (
            "{{json .Config.Entrypoint}} {{.Config.Entrypoint}}",
            "null <nil>",
        ),
        (
            "{{.State.Running}} {{.State.Pid}} {{.Ratio}}",
            "true 42 0.5",
        ),
        (
            "{{range .Mounts}}{{.Source}}:{{.Destination}} {{end}}",
            "/a:/b /c:/d ",
        ),
        (
            "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}={{$v.IPAddress}};{{end}}",
            "back=10.0.1.2;front=10.0.0.2;",
        ),
        (
            "{{range.NetworkSettings.Networks}}{{.IPAddress}}{{println}}{{end}}",
            "10.0.1.2\n10.0.0.2\n",
        ),
        (r#"{{index .Config.Labels "a.b/c"}}"#, "x"),
        (r#"[{{index .Config.Labels "nosuch"}}]"#, "[]"),
        (
            "{{.Config.Labels.nosuch}} {{.Config.Labels.stage}}",
            "<no value> test",
        ),
        (
            r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#,
            "8080",
        ),
        (
            r#"{{index .NetworkSettings.Ports "80/tcp" 0 | json}}"#,
            r#"{"HostIp":"0.0.0.0","HostPort":"8080"}"#,
        ),
        (
            "{{range $p, $conf := .NetworkSettings.Ports}} {{$p}} -> {{if $conf}}{{(index $conf 0).HostPort}}{{else}}none{{end}}{{end}}",
            " 443/tcp -> none 80/tcp -> 8080",
        ),
        (
            "{{if .State.Health}}{{.State.Health.Status}}{{else}}no check{{end}}",
            "no check",
        ),
        ("{{with .State}}{{.Pid}}{{end}}", "42"),
        ("{{with .Config.Entrypoint}}x{{else}}none{{end}}", "none"),
        (
            "{{if eq .State.Status \"running\"}}up{{else if .State.Pid}}pid{{end}}",
            "up",
        ),
        (
            "{{if and .State.Running (gt .State.Pid 40) (not .State.ExitCode)}}yes{{end}}",
            "yes",
        ),
        (
            "{{or .Config.Entrypoint .Name}} {{and .Name .Id}}",
            "/web 0123456789abcdef",
        ),
        (
            "{{slice .Name 1}} {{slice .Id 0 12}} {{len .Mounts}}",
            "web 0123456789ab 2",
        ),
        (
            "{{join .Config.Cmd \" \"}} {{.Config.Cmd}}",
            "sh -c echo hi [sh -c echo hi]",
        ),
        ("{{index (split .Config.Image \":\") 1}}", "1.27"),
        (
            "{{.State.Status | upper}} {{title \"two words\"}} {{lower \"AB\"}}",
            "RUNNING Two Words ab",
        ),
        ("{{truncate .Id 4}}[{{pad .Name 1 2}}]", "0123[ /web  ]"),
        (
            "{{printf \"%-6s|%6.2f|%05d|%q|%v|%%\" .Name .Ratio .State.Pid .Name .Config.Env}}",
            "/web  |  0.50|00042|\"/web\"|[A=1 B=2]|%",
        ),
        (
            "{{printf \"%s\" 1}}{{printf \"%d\"}}",
            "%!s(int=1)%!d(MISSING)",
        ),
        ("{{print 1 2 \"a\" 3}}{{println 1 \"b\"}}", "1 2a31 b\n"),
        (
            "{{$x := .Name}}{{if true}}{{$x = \"new\"}}{{end}}{{$x}} {{$.Name}}",
            "new /web",
        ),
        ("a  {{- /* nothing */ -}}  b {{- .Ratio -}} c", "ab0.5c"),
        ("{{/* nothing */}}x", "x"),
        (
            "{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$e}}{{end}}",
            "A=1,B=2",
        ),
        (
            "{{range .Config.Env}}{{if eq . \"B=2\"}}{{continue}}{{end}}{{.}}{{end}}{{range 3}}{{.}}{{if eq . 1}}{{break}}{{end}}{{end}}",
            "A=101",
        ),
        ("{{range .Config.Entrypoint}}x{{else}}empty{{end}}", "empty"),
        (
            "{{eq 1 2 1}} {{ne 1 1.0}} {{lt \"a\" \"b\"}} {{ge 2 2}}",
            "true false true true",
        ),
        (
            "{{`raw \"text\"`}} {{\"tab\\there\"}} {{'a'}}",
            "raw \"text\" tab\there 97",
        ),
        ("{{.Config.Labels}}", "map[a.b/c:x stage:test]"),
        ("{{(index .Mounts 0).Name}}{{html \"<a>\"}}", "&lt;a&gt;"),
        ("no action, {single} \\t", "no action, {single} \\t"),
        (
            "{{with $s := .State}}{{$s.Pid}}{{end}}{{len \"äb\"}}",
            "423",
        ),
        (
            "{{json (index .Mounts 1).RW}} {{.Size | printf \"%d bytes\"}}",
            "false 1234567 bytes",
        ),
    ] {
        assert_eq!(render(template).as_deref(), Ok(text), "{template}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (template, message) in [
        (
            "{{.Nosuch}}",
            "line 1: at <.Nosuch>: map has no entry for key \"Nosuch\"",
        ),
        (
            "\n{{.State.Nosuch}}",
            "line 2: at <.State.Nosuch>: map has no entry for key \"Nosuch\"",
        ),
        (
            "{{.State.Health.Status}}",
            "line 1: at <.State.Health.Status>: nil pointer evaluating .Status",
        ),
        (
            "{{.Id.Length}}",
            "line 1: at <.Id.Length>: can't evaluate field Length in a string",
        ),
        ("{{", "line 1: unclosed action"),
        ("{{.Id", "line 1: unclosed action"),
        ("{{.Id}", "line 1: unexpected '}' in action"),
        ("{{}}", "line 1: missing value for command"),
        (
            "{{if .Id}}",
            "line 1: unexpected end of template: missing {{end}}",
        ),
        ("{{end}}", "line 1: unexpected {{end}}"),
        ("{{nosuch .}}", "line 1: function \"nosuch\" not defined"),
        ("{{$x}}", "line 1: undefined variable \"$x\""),
        ("{{.Id | 3}}", "line 1: non executable command in pipeline"),
        ("{{(.Id}}", "line 1: unclosed left paren"),
        ("{{.Id)}}", "line 1: unexpected right paren"),
        ("{{\"open}}", "line 1: unterminated quoted string"),
        ("{{/* open", "line 1: unclosed comment"),
        ("{{break}}", "line 1: {{break}} outside {{range}}"),
        (
            "{{template \"x\"}}",
            "line 1: {{template}} is not understood",
        ),
        (
            "{{.Id .Name}}",
            "line 1: at <.Id>: can't give argument to non-function",
        ),
        (
            "{{index .Mounts 5}}",
            "line 1: at <index>: error calling index: index out of range: 5",
        ),
        (
            "{{range .Id}}{{end}}",
            "line 1: at <.Id>: range can't iterate over 0123456789abcdef",
        ),
        (
            "{{eq .Id 1}}",
            "line 1: at <eq>: error calling eq: incompatible types for comparison",
        ),
    ] {
        let message = format!("template parsing error: {message}");
        assert_eq!(render(template), Err(message), "{template}");
    }
}

#[test]
fn rows_have_labels() {
    let row = json!({"ID": "ab", "Labels": "a.b=1"});
    let labels = json!({"a.b": "1"}).as_object().cloned().unwrap();
    let template = Template::parse_escaped("{{.ID}}\\t{{.Label \"a.b\"}}{{.Label \"x\"}}").unwrap();
    assert_eq!(template.render_row(&row, &labels).unwrap(), "ab\t1");
    let headings = json!({"ID": "CONTAINER ID"});
    assert_eq!(
        template.render_heading(&headings).unwrap(),
        "CONTAINER ID\tbx"
    );
    let template = Template::parse("{{.Health}}").unwrap();
    assert!(template.render_row(&row, &labels).is_err());
    let template = Template::parse("{{upper .ID}}{{truncate .ID 3}}").unwrap();
    assert_eq!(
        template.render_heading(&json!({"ID": "Id here"})).unwrap(),
        "Id hereId "
    );
}
