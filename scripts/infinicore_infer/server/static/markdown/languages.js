// What of each language is coloured: see highlight.js for how the fields are read.

const C_WORDS =
  "auto break case const constexpr continue default do else enum extern for goto if inline register return sizeof static " +
  "struct switch typedef union volatile while";
const C_TYPES = "bool char double float int int8_t int16_t int32_t int64_t long short signed size_t uint8_t uint16_t uint32_t uint64_t unsigned void";
const JS_WORDS =
  "as async await break case catch class const continue debugger default delete do else export extends finally for from function " +
  "get if import in instanceof let new of return set static super switch this throw try typeof var void while with yield";
const CURLY = { line: ["//"], block: [["/*", "*/"]], quotes: ['"', "'"] };
const HASH = { line: ["#"], quotes: ['"', "'"], spaced: true };

export const LANGUAGES = {
  python: {
    label: "Python", line: ["#"], long: [['"""', '"""'], ["'''", "'''"]], quotes: ['"', "'"], prefix: "(?<![A-Za-z0-9_])[rRbBfFuU]{0,2}", decorators: true,
    keywords: "and as assert async await break class continue def del elif else except finally for from global if import in is lambda match case nonlocal not or pass raise return try while with yield",
    types: "bool bytes dict float frozenset int list object set str tuple type", literals: "True False None self cls",
  },
  javascript: { label: "JavaScript", ...CURLY, long: [["`", "`"]], keywords: JS_WORDS, literals: "true false null undefined NaN Infinity" },
  typescript: {
    label: "TypeScript", ...CURLY, long: [["`", "`"]], decorators: true,
    keywords: `${JS_WORDS} abstract declare enum implements interface keyof namespace private protected public readonly satisfies type`,
    types: "any bigint boolean never number object string symbol unknown", literals: "true false null undefined",
  },
  c: { label: "C", ...CURLY, patterns: { meta: "^\\s*#\\s*\\w+" }, keywords: C_WORDS, types: C_TYPES, literals: "true false NULL" },
  cpp: {
    label: "C++", ...CURLY, patterns: { meta: "^\\s*#\\s*\\w+" },
    keywords: `${C_WORDS} catch class concept const_cast decltype delete dynamic_cast explicit final friend mutable namespace new noexcept operator override private protected public reinterpret_cast requires static_cast template this throw try typename using virtual co_await co_return co_yield`,
    types: `${C_TYPES} string vector map`, literals: "true false nullptr NULL",
  },
  csharp: {
    label: "C#", ...CURLY,
    keywords: "abstract as async await base break case catch class const continue default delegate do else enum event explicit extern finally fixed for foreach get goto if implicit in interface internal is lock namespace new operator out override params private protected public readonly record ref return sealed set sizeof static struct switch this throw try typeof unsafe using var virtual when where while yield",
    types: "bool byte char decimal double float int long object sbyte short string uint ulong ushort void", literals: "true false null",
  },
  java: {
    label: "Java", ...CURLY, long: [['"""', '"""']], decorators: true,
    keywords: "abstract assert break case catch class continue default do else enum extends final finally for if implements import instanceof interface native new package private protected public record return sealed static super switch synchronized this throw throws transient try var void volatile while yield",
    types: "boolean byte char double float int long short String Object List Map", literals: "true false null",
  },
  kotlin: {
    label: "Kotlin", ...CURLY, long: [['"""', '"""']], decorators: true,
    keywords: "abstract as break by class companion const continue data do else enum final for fun if import in inline interface internal is lateinit object open operator out override package private protected public return sealed super suspend this throw try typealias val var when while",
    types: "Any Boolean Byte Char Double Float Int List Long Map Set Short String Unit", literals: "true false null",
  },
  swift: {
    label: "Swift", ...CURLY, long: [['"""', '"""']], decorators: true,
    keywords: "as associatedtype async await break case catch class continue default defer do else enum extension fallthrough fileprivate for func guard if import in init inout internal is let mutating open operator override private protocol public repeat return self static struct subscript super switch throw throws try typealias var where while",
    types: "Any Array Bool Character Dictionary Double Float Int Set String Void", literals: "true false nil",
  },
  go: {
    label: "Go", ...CURLY, long: [["`", "`"]],
    keywords: "break case chan const continue default defer else fallthrough for func go goto if import interface map package range return select struct switch type var",
    types: "any bool byte complex128 error float32 float64 int int8 int16 int32 int64 rune string uint uint8 uint16 uint32 uint64 uintptr", literals: "true false nil iota",
  },
  rust: {
    label: "Rust", line: ["//"], block: [["/*", "*/"]], quotes: ['"'], patterns: { string: "'(?:[^'\\\\]|\\\\.[^']*)'", meta: "#!?\\[[^\\]]*\\]", function: "\\w+!(?=[({\\[])" },
    keywords: "as async await break const continue crate dyn else enum extern fn for if impl in let loop match mod move mut pub ref return self static struct super trait type unsafe use where while",
    types: "bool char f32 f64 i8 i16 i32 i64 i128 isize str u8 u16 u32 u64 u128 usize Box Option Result Self String Vec", literals: "true false None Some Ok Err",
  },
  php: {
    label: "PHP", line: ["//", "#"], block: [["/*", "*/"]], quotes: ['"', "'"], patterns: { meta: "<\\?php|\\?>" },
    keywords: "abstract as break case catch class const continue declare default do echo else elseif extends final finally fn for foreach function global if implements include instanceof interface match namespace new private protected public readonly require return static switch throw trait try use while yield",
    types: "array bool callable float int iterable mixed object string void", literals: "true false null",
  },
  ruby: {
    label: "Ruby", ...HASH, patterns: { number: "(?<![:\\w]):[A-Za-z_]\\w*" },
    keywords: "alias and begin break case class def do else elsif end ensure extend for if in include loop module next not or puts raise redo require rescue retry return self super then undef unless until when while yield", literals: "true false nil",
  },
  lua: { label: "Lua", line: ["--"], block: [["--[[", "]]"]], quotes: ['"', "'"], keywords: "and break do else elseif end for function goto if in local not or repeat return then until while", literals: "true false nil" },
  r: { label: "R", line: ["#"], quotes: ['"', "'"], keywords: "break else for function if in next repeat return while library", literals: "TRUE FALSE NULL NA Inf NaN" },
  shell: {
    label: "Shell", ...HASH, patterns: { type: "\\$(?:\\{[^}]*\\}?|\\w+|[@#?*!$-])", function: "(?<=\\s)--?[A-Za-z][\\w-]*" },
    keywords: "case do done elif else esac export fi for function if in local return select set source then until while alias cd echo exit sudo",
  },
  sql: {
    label: "SQL", line: ["--"], block: [["/*", "*/"]], quotes: ["'", '"'], anyCase: true,
    keywords: "add all alter and as asc begin between by case cascade check column commit constraint create cross database default delete desc distinct drop else end exists explain foreign from full group having if in index inner insert intersect into is join key left like limit not offset on or order outer primary references returning right rollback select set table then union unique update using values view when where with",
    types: "bigint blob boolean char date decimal double float int integer json numeric real serial smallint text time timestamp uuid varchar", literals: "true false null",
  },
  json: { label: "JSON", ...CURLY, quotes: ['"'], patterns: { function: '"(?:[^"\\\\]|\\\\.)*"(?=\\s*:)' }, literals: "true false null" },
  yaml: { label: "YAML", ...HASH, patterns: { function: "(?<=^\\s*(?:- )*)[\\w./-]+(?=:(?:\\s|$))", meta: "^---$|[&*][\\w-]+" }, literals: "true false null yes no" },
  toml: { label: "TOML", ...HASH, long: [['"""', '"""']], patterns: { keyword: "^\\s*\\[.*\\]", function: "^\\s*[\\w.-]+(?=\\s*=)" }, literals: "true false" },
  ini: { label: "INI", line: [";", "#"], spaced: true, quotes: ['"'], patterns: { keyword: "^\\s*\\[.*\\]", function: "^\\s*[\\w.-]+(?=\\s*=)" } },
  dockerfile: { label: "Dockerfile", ...HASH, patterns: { keyword: "^\\s*(?:ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|RUN|SHELL|USER|VOLUME|WORKDIR)\\b", type: "\\$\\{?\\w+\\}?" } },
  makefile: { label: "Makefile", line: ["#"], quotes: ['"', "'"], patterns: { function: "^[\\w./%-]+(?=\\s*:)", type: "\\$[({][^)}]*[)}]|\\$[@<^]" }, keywords: "ifeq ifneq else endif include define endef" },
  css: { label: "CSS", block: [["/*", "*/"]], quotes: ['"', "'"], patterns: { meta: "@[\\w-]+", number: "#[\\da-fA-F]{3,8}\\b", function: "--[\\w-]+|[a-z-]+(?=\\s*:)", keyword: "[.#][A-Za-z][\\w-]*" } },
  html: { label: "HTML", markup: true },
  xml: { label: "XML", markup: true },
  diff: {
    label: "Diff",
    whole: (line) => (/^(?:@@|diff |index |---|\+\+\+)/.test(line) ? "meta" : line[0] === "+" ? "added" : line[0] === "-" ? "removed" : ""),
  },
};

const OTHERS = {
  py: "python", python3: "python", pycon: "python", js: "javascript", mjs: "javascript", jsx: "javascript", node: "javascript", ts: "typescript", tsx: "typescript",
  h: "c", "c++": "cpp", cc: "cpp", cxx: "cpp", hpp: "cpp", cuda: "cpp", cu: "cpp", "objective-c": "c", cs: "csharp", "c#": "csharp", kt: "kotlin", golang: "go",
  rs: "rust", rb: "ruby", sh: "shell", bash: "shell", zsh: "shell", console: "shell", "shell-session": "shell", powershell: "shell", fish: "shell",
  postgresql: "sql", postgres: "sql", mysql: "sql", sqlite: "sql", jsonc: "json", json5: "json", jsonl: "json", yml: "yaml", docker: "dockerfile", make: "makefile",
  scss: "css", less: "css", svg: "xml", xhtml: "html", vue: "html", svelte: "html", patch: "diff", conf: "ini", properties: "ini", env: "shell", dart: "java", scala: "kotlin", groovy: "java",
};

/** What a fence may call them, in small letters. */
export const NAMES = Object.assign(Object.create(null), OTHERS);
for (const name of Object.keys(LANGUAGES)) NAMES[name] = name;
