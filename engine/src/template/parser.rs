//! Pieces as a tree.

use serde_json::Value;

use super::Error;
use super::functions;
use super::lexer::{Piece, Token};

/// A part of a template.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// The bodies of `if … else if …`, each behind its condition, and the one of `else`.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    /// The same with the condition's value as dot.
    With(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Break,
    Continue,
}

/// Commands, each of which gets the result of the one before as its last argument.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) line: usize,
    /// Variables that take the result: two for `range $key, $value :=`.
    pub(super) variables: Vec<String>,
    /// `:=` and not `=`.
    pub(super) declares: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

/// Something with a value, and the fields taken from it.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
}

/// Where an operand's value comes from.
#[derive(Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Literal(Value),
    Nil,
    Function(String),
    Group(Box<Pipeline>),
}

/// Makes the tree.
pub(super) fn parse(pieces: Vec<Piece>) -> Result<Vec<Node>, Error> {
    let mut parser = Parser {
        pieces: pieces.into_iter(),
        scopes: vec![vec![String::new()]],
        loops: 0,
        line: 1,
    };
    let (nodes, end) = parser.list()?;
    match end {
        Stop::Text => Ok(nodes),
        Stop::End => Err(parser.error("unexpected {{end}}")),
        Stop::Else(_) => Err(parser.error("unexpected {{else}}")),
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    /// Variables that may be used, by block.
    scopes: Vec<Vec<String>>,
    loops: usize,
    line: usize,
}

/// What a list of nodes ended with.
enum Stop {
    Text,
    End,
    /// The tokens behind `else`.
    Else(Vec<Token>),
}

impl Parser {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::Parse {
            line: self.line,
            message: message.into(),
        }
    }

    fn list(&mut self) -> Result<(Vec<Node>, Stop), Error> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (line, mut tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action { line, tokens } => (line, tokens),
            };
            self.line = line;
            let keyword = match tokens.first() {
                None => return Err(self.error("missing value for command")),
                Some(Token::Word(word)) => word.clone(),
                Some(_) => String::new(),
            };
            match keyword.as_str() {
                "if" | "with" | "range" => {
                    tokens.remove(0);
                    nodes.push(self.block(&keyword, tokens)?);
                }
                "end" if tokens.len() == 1 => return Ok((nodes, Stop::End)),
                "else" => {
                    tokens.remove(0);
                    return Ok((nodes, Stop::Else(tokens)));
                }
                "break" | "continue" if tokens.len() == 1 => {
                    if self.loops == 0 {
                        return Err(self.error(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                    }
                    nodes.push(if keyword == "break" {
                        Node::Break
                    } else {
                        Node::Continue
                    });
                }
                "define" | "template" | "block" => {
                    return Err(self.error(format!("{{{{{keyword}}}}} is not understood")));
                }
                _ => nodes.push(Node::Print(self.pipeline(tokens)?)),
            }
        }
        Ok((nodes, Stop::Text))
    }

    /// `if`, `with` or `range`, from behind the keyword to its `end`.
    fn block(&mut self, keyword: &str, tokens: Vec<Token>) -> Result<Node, Error> {
        let is_loop = keyword == "range";
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        let mut condition = tokens;
        // What a condition declares is known in its own body and in those behind it.
        self.scopes.push(Vec::new());
        loop {
            if condition.is_empty() {
                return Err(self.error(format!("missing value for {keyword}")));
            }
            let pipeline = self.pipeline(condition)?;
            if pipeline.variables.len() > 1 && !is_loop {
                return Err(self.error("two variables are for {{range}}"));
            }
            self.loops += usize::from(is_loop);
            let (body, end) = self.list()?;
            self.loops -= usize::from(is_loop);
            branches.push((pipeline, body));
            match end {
                Stop::Text => return Err(self.error("unexpected end of template: missing {{end}}")),
                Stop::End => break,
                Stop::Else(rest) if rest.is_empty() => {
                    let (body, end) = self.list()?;
                    if !matches!(end, Stop::End) {
                        return Err(self.error("{{else}} without its {{end}}"));
                    }
                    otherwise = body;
                    break;
                }
                Stop::Else(mut rest) => {
                    if is_loop || rest.first() != Some(&Token::Word(keyword.to_owned())) {
                        return Err(self.error("unexpected words behind else"));
                    }
                    rest.remove(0);
                    condition = rest;
                }
            }
        }
        self.scopes.pop();
        Ok(match keyword {
            "if" => Node::If(branches, otherwise),
            "with" => Node::With(branches, otherwise),
            _ => match branches.pop() {
                Some((over, body)) => Node::Range {
                    over,
                    body,
                    otherwise,
                },
                None => return Err(self.error("missing value for range")),
            },
        })
    }

    fn pipeline(&mut self, tokens: Vec<Token>) -> Result<Pipeline, Error> {
        let assigned = tokens
            .iter()
            .position(|token| matches!(token, Token::Declare | Token::Assign));
        let (mut variables, mut declares, mut rest) = (Vec::new(), false, tokens);
        if let Some(position) = assigned {
            let behind = rest.split_off(position + 1);
            declares = rest.pop() == Some(Token::Declare);
            for (index, token) in rest.into_iter().enumerate() {
                match token {
                    Token::Variable(name) if index % 2 == 0 => variables.push(name),
                    Token::Comma if index == 1 => {}
                    _ => return Err(self.error("expected variables before := or =")),
                }
            }
            rest = behind;
        }
        let mut tokens = rest.into_iter().peekable();
        let mut pipeline = self.commands(&mut tokens)?;
        if tokens.next().is_some() {
            return Err(self.error("unexpected right paren"));
        }
        for name in &variables {
            if declares {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.push(name.clone());
                }
            } else {
                self.require(name)?;
            }
        }
        pipeline.variables = variables;
        pipeline.declares = declares;
        Ok(pipeline)
    }

    /// Commands up to the end, or up to a closing parenthesis, which is left.
    fn commands(
        &self,
        tokens: &mut std::iter::Peekable<std::vec::IntoIter<Token>>,
    ) -> Result<Pipeline, Error> {
        let mut commands = vec![Vec::<Operand>::new()];
        while let Some(token) = tokens.next_if(|token| *token != Token::Close) {
            let base = match token {
                Token::Pipe => {
                    commands.push(Vec::new());
                    continue;
                }
                Token::Field { name, .. } => {
                    let mut operand = self.operand(Base::Dot, tokens);
                    operand.fields.insert(0, name);
                    push(&mut commands, operand);
                    continue;
                }
                Token::Dot => Base::Dot,
                Token::Variable(name) => {
                    self.require(&name)?;
                    Base::Variable(name)
                }
                Token::Literal(value) => Base::Literal(value),
                Token::Word(word) => match word.as_str() {
                    "true" => Base::Literal(Value::Bool(true)),
                    "false" => Base::Literal(Value::Bool(false)),
                    "nil" => Base::Nil,
                    name if functions::is_known(name) => Base::Function(word),
                    name => return Err(self.error(format!("function {name:?} not defined"))),
                },
                Token::Open => {
                    let inner = self.commands(tokens)?;
                    if tokens.next() != Some(Token::Close) {
                        return Err(self.error("unclosed left paren"));
                    }
                    Base::Group(Box::new(inner))
                }
                Token::Close | Token::Comma | Token::Declare | Token::Assign => {
                    return Err(self.error("unexpected comma or assignment in operand"));
                }
            };
            let operand = self.operand(base, tokens);
            push(&mut commands, operand);
        }
        if commands.iter().any(Vec::is_empty) {
            return Err(self.error("missing value for command"));
        }
        for command in &commands[1..] {
            // What gets an argument has to be able to take one.
            let first = &command[0];
            if !matches!(first.base, Base::Function(_)) && first.fields.is_empty() {
                return Err(self.error("non executable command in pipeline"));
            }
        }
        Ok(Pipeline {
            line: self.line,
            variables: Vec::new(),
            declares: false,
            commands,
        })
    }

    /// The operand with the fields that stand directly behind it.
    fn operand(
        &self,
        base: Base,
        tokens: &mut std::iter::Peekable<std::vec::IntoIter<Token>>,
    ) -> Operand {
        let mut fields = Vec::new();
        while let Some(Token::Field { name, .. }) =
            tokens.next_if(|token| matches!(token, Token::Field { attached: true, .. }))
        {
            fields.push(name);
        }
        Operand { base, fields }
    }

    fn require(&self, name: &str) -> Result<(), Error> {
        match self.scopes.iter().flatten().any(|known| known == name) {
            true => Ok(()),
            false => Err(self.error(format!("undefined variable \"${name}\""))),
        }
    }
}

fn push(commands: &mut [Vec<Operand>], operand: Operand) {
    if let Some(command) = commands.last_mut() {
        command.push(operand);
    }
}

impl std::fmt::Display for Operand {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.base {
            Base::Dot if self.fields.is_empty() => formatter.write_str(".")?,
            Base::Dot => {}
            Base::Variable(name) => write!(formatter, "${name}")?,
            Base::Literal(value) => write!(formatter, "{value}")?,
            Base::Nil => formatter.write_str("nil")?,
            Base::Function(name) => formatter.write_str(name)?,
            Base::Group(_) => formatter.write_str("(…)")?,
        }
        for field in &self.fields {
            write!(formatter, ".{field}")?;
        }
        Ok(())
    }
}
