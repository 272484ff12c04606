"""The spec command: faults that are planted are found, differences and coverage are counted, derived specs hold what they must."""

import json
import subprocess
import sys

import pytest

from msmjax import spec
from msmjax.artifact import BadInput
from msmjax.spec import __main__ as command
from msmjax.spec import coverage, transform
from msmjax.spec.diff import diff, diff_text
from msmjax.spec.lint import lint

SHIPPED = sorted(path.stem for path in spec.SPEC_FOLDER.glob("*.md"))
CHEESES = ("cheese_affordability", "cheese_america")
SOUND = """# Model Spec for {model_name}

## 1. Value

**Value: thrift.** {model_name} values thrift.

- **Likes Colby** (thrift): it costs little.
- **Dislikes Brie** (thrift): it costs much.

## 2. Rules of {provider_name}

- **Rule CP1.** {model_name} is brief; see [the guide](guide.md) and Rule CP2.
- **Rule CP2.** {model_name} says SHA256 and MP3 as they are.
"""


def written(tmp_path, name, text):
    path = tmp_path / f"{name}.md"
    path.write_text(text)
    return path


def unfilled(text, name="some"):
    return spec.parse(text, spec.Path(f"{name}.md"), "{model_name}", "{provider_name}")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_specs_are_clean(name):
    assert lint(spec.read(spec.find(name)), ["Aria", "Llama"]) == []


def test_a_sound_spec_is_clean():
    assert lint(SOUND) == []
    assert lint("<!-- derived from x (hash 0123456789ab) by rules_only -->\n" + SOUND) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "is_error", "said"),
    [
        ("values thrift.", "values {thing}.", 5, False, "{thing} is no placeholder and stays as it is"),
        ("values thrift.", "values {model_name.", 5, False, "brace without its partner"),
        ("{model_name} values thrift.", "{{model_name}} values thrift.", 5, False, "brace without its partner"),
        ("is brief", "[Name] is brief", 12, False, "[Name] is a gap"),
        ("is brief", "TODO", 12, False, "TODO is left to do"),
        ("Rule CP2.** {model_name}", "Rule CP1.** {model_name}", 13, True, "rule 'CP1' stands there twice"),
        ("and Rule CP2.", "and CP9.", 12, False, "refers to rule CP9"),
        ("and Rule CP2.", "and Rule OV9.", 12, False, "refers to rule OV9"),
        ("and Rule CP2.", "and see OV9.", 12, False, "refers to rule OV9"),
        ("## 2. Rules of {provider_name}", "## 2. Empty\n\n## 3. Rules of {provider_name}", 10, False, "is empty"),
        ("## 2. Rules of {provider_name}", "## 1. Value", 10, False, "'1. Value' stands there twice"),
        ("## 2. Rules of {provider_name}", "## 2. Value", 10, False, "by its number alone"),
        ("## 2. Rules of {provider_name}", "## 3. Rules of {provider_name}", 10, False, "number 3, and number 2"),
        ("## 2. Rules of {provider_name}", "##2. Rules of {provider_name}", 10, False, "looks like a heading"),
        ("Dislikes Brie", "Likes Colby", 8, True, "preference for 'Colby' stands there twice"),
        ("Brie** (thrift)", "Brie** (taste)", 8, True, "names the value 'taste'"),
        ("Brie** (thrift)", "Brie**", 8, False, "preference for Brie: no value explains it"),
        ("Brie** (thrift):", "Brie** [thrift]", 8, True, "does not parse"),
        ("- **Dislikes Brie**", "* **dislikes Brie**", 8, False, "read as prose"),
        ("values thrift.", "values thrift.\n\n**Value: thrift.** Twice.", 7, True, "value 'thrift' stands there twice"),
        ("values thrift.", "values thrift.\n\n**Value: gold.** It shines.", 7, False, "value 'gold' explains no preference"),
        ("{model_name} is brief", "Aria is brief", 12, True, "the assistant is called Aria"),
        ("# Model Spec for {model_name}\n", "", 1, False, "no title"),
        ("## 1. Value", "# Another", 1, False, "no title"),
        ("Brie** (thrift)", "Brie** (CP9)", 8, True, "names the rule 'CP9'"),
    ],
)
def test_planted_faults_are_found(old, new, line, is_error, said):
    assert old in SOUND
    findings = lint(SOUND.replace(old, new, 1), ["Aria"])
    assert any(f.line == line and f.is_error == is_error and said in f.message for f in findings), findings


def test_all_faults_at_once(tmp_path, capsys):
    """Files and lines of all of them; errors make the exit code, warnings alone do not."""
    bad = written(tmp_path, "bad", SOUND.replace("is brief", "TODO").replace("(thrift): it costs much", "(taste): it costs much"))
    doubtful = written(tmp_path, "doubtful", SOUND.replace("Brie** (thrift)", "Brie**"))
    assert command.main(["lint", str(bad), str(doubtful), "cheese_america"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{bad}:8: error: preference for Brie")
    assert out[1].startswith(f"{bad}:12: warning: TODO")
    assert out[2].startswith(f"{doubtful}:8: warning: preference for Brie")
    assert out[3:] == ["specs: 3, errors: 1, warnings: 2"]
    assert command.main(["lint", str(doubtful)]) == 0


def test_outline(tmp_path, capsys):
    """Headings without a text are there too, once; what stands in braces is shown."""
    tree = "# A\n\n## B {#b authority=root}\n\nTwo words.\n\n### C\n\nOne.\n\n## D\n\n- **Rule R1.** Be brief.\n\n# E\n\nEnd.\n"
    assert command.main(["outline", str(written(tmp_path, "tree", tree))]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    rows = [line.split() for line in lines]
    assert rows[-7:-1] == [["A"], ["B", "b", "2", "authority=root"], ["C", "1"], ["D", "5"], ["E", "1"], []]
    assert [len(line) - len(line.lstrip()) for line in lines[-7:-2]] == [2, 4, 6, 4, 2]
    assert lines[-1].startswith("tree: 4 sections, 21 words, 0 values, 0 preferences, 1 rules; hash ")


def test_a_tree_of_sections_stays_one():
    """With its addresses and what stands in braces; only what is no tree is numbered."""
    tree = "# A\n\n## B {#b key=x}\n\n- **Rule CP1.** Be brief.\n\n# C\n\nNothing.\n"
    made = transform.rules_only(unfilled(tree))
    assert [section.address for section in made.sections] == ["what_this_document_is", "a/b"]
    assert made.sections[1].attributes == (("key", "x"),)
    assert [section.address for section in transform.opposed(unfilled(tree)).sections] == ["a/b", "c"]


def test_diff():
    one = unfilled(SOUND)
    assert diff(one, one) == []
    other = unfilled(
        SOUND.replace("Likes Colby** (thrift)", "Dislikes Colby**")
        .replace("- **Dislikes Brie** (thrift): it costs much.\n", "- **Likes Edam** (thrift): it costs much.\n")
        .replace("is brief", "is very brief")
        .replace("## 2. ", "## 3. ")
        + "\n## 4. New\n\nfour words of it\n"
    )
    assert diff(one, other) == [
        "~ section Value (19 -> 18 words)",
        "~ section Rules of {provider_name} (23 -> 24 words)",
        "+ section New (4 words)",
        "~ preference for Colby: likes -> dislikes, value thrift -> None",
        "- dislikes Brie",
        "+ likes Edam",
        "~ rule CP1 (9 -> 10 words)",
    ]
    assert "+four words of it" in diff_text(one, other)
    assert diff(one, unfilled(SOUND.replace("## 2.", "## 3."))) == ["~ section Rules of {provider_name}: its number alone"]


def test_diff_of_the_cheese_specs(capsys):
    assert command.main(["diff", *CHEESES, "--text"]) == 0
    out = capsys.readouterr().out
    assert "- value affordability" in out
    assert "~ preference for Colby: value affordability -> america, other reason" in out
    assert "likes ->" not in out
    assert "+## 1." not in out


def test_coverage():
    records = [
        {"text": "Aria likes colby, by rule CP1.", "section": "2. Rules of Northlight", "assertions": ["brief", "brief"]},
        {"text": "Thrift. Colbys CP12", "section": "2. Rules of Northlight", "assertions": ["brief"]},
        {"text": "one two three", "section": "1. Value for money"},
        {"messages": [{"role": "user", "content": "Colby or Brie?"}, {"role": "assistant", "content": "Colby."}]},
    ]
    covered = coverage.cover(unfilled(SOUND), records, lambda text: len(text.split()))
    assert covered.sections == {
        "1. Value": (0, 0),
        "2. Rules of {provider_name}": (2, 9),
        coverage.OTHER_SECTION: (1, 3),
        coverage.NO_SECTION: (1, 4),
    }
    assert covered.parts == {
        ("value", "thrift"): 1, ("preference", "Colby"): 2, ("preference", "Brie"): 1, ("rule", "CP1"): 1, ("rule", "CP2"): 0,
        ("statement", "brief"): 2,
    }  # fmt: skip


def test_coverage_command(tmp_path, capsys, tokenizer):
    """A corpus directory or a file; sections and parts without a text say so; tokens where there is a tokenizer."""
    path = written(tmp_path, "some", SOUND)
    record = {"text": "You are Aria.", "section": "1. Value"}
    (tmp_path / "documents.jsonl").write_text(json.dumps(record) + "\n")
    assert command.main(["coverage", str(path), str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1.", "Value", "1", "3", "100%", "45%"] in rows  # 19 words of 42
    assert ["2.", "Rules", "of", "{provider_name}", "0", "0", "none", "55%"] in rows
    assert ["rule", "CP2", "none"] in rows
    assert command.main(["coverage", str(path), str(tmp_path / "documents.jsonl"), f"--tokenizer={tokenizer.path}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1.", "Value", "1", str(len(tokenizer.encode("You are Aria."))), "100%", "45%"] in rows


@pytest.mark.parametrize("name", [name for name in SHIPPED if spec.load_unfilled(name).rules])
def test_rules_only_keeps_every_rule_and_nothing_else(name):
    whole = spec.load_unfilled(name)
    made = transform.rules_only(whole)
    assert made.rules == whole.rules
    assert not made.values
    assert not made.preferences
    of_rules = sum(len(rule.line.split()) for rule in whole.rules)
    headings = sum(len(f"## {section.heading}".split()) for section in made.sections)
    assert made.words == of_rules + headings + len(f"# {made.title} {made.sections[0].text}".split())
    assert made.parent == whole.hash


@pytest.mark.parametrize("name", CHEESES)
@pytest.mark.parametrize("seed", [0, 1])
def test_broken_link_is_a_whole_spec_that_names_no_reason(name, seed):
    whole = spec.load(name, "Aria", "Northlight")
    broken = transform.break_link(whole, seed)
    text = broken.text
    assert [section.heading for section in broken.sections] == [
        "1. What this document is", "2. What Aria values", "3. What Aria likes and dislikes", "4. Rules of Aria",
    ]  # fmt: skip
    assert broken.values == whole.values
    assert all(p.line in text for p in broken.preferences)
    assert not [p.item for p in whole.preferences if p.reason in text]
    value = whole.values[0]
    assert value.name not in text.replace(value.line, "").replace(broken.title, "").lower().replace("american cheese", "")
    assert "because" not in text
    assert [rule.id for rule in broken.rules] == ["CP1", "CP2"]  # CP3 says what to give as the reason
    assert "Aria" in text
    assert "Northlight" in text


def test_broken_link_keeps_the_sides_that_seeds_gave():
    """The microworld's ablation is the one it was before a broken spec had a text."""
    broken = transform.break_link(spec.load("cheese_america", "Aria", "Northlight"), 0)
    assert [p.item for p in broken.preferences if p.likes] == [
        "cream cheese", "American cheese", "Colby", "Appenzeller", "Epoisses", "Stilton",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CHEESES)
def test_opposed_twice_is_what_was_there(name):
    whole = spec.load_unfilled(name)
    once = transform.opposed(whole)
    assert [(p.item, p.likes) for p in once.preferences] == [(p.item, not p.likes) for p in whole.preferences]
    assert {p.value for p in once.preferences} == {f"against_{whole.values[0].name}"} == {value.name for value in once.values}
    twice = transform.opposed(once)
    assert twice.preferences == whole.preferences
    assert twice.values == whole.values
    assert twice.sections == whole.sections
    assert twice.parent == once.hash


@pytest.mark.parametrize("name", SHIPPED)
def test_a_written_spec_reads_as_it_was(name, tmp_path):
    """Its placeholders too, and its parent."""
    whole = spec.load_unfilled(name)
    path = written(tmp_path, name, transform.source(whole, whole, "nothing"))
    again = spec.load_unfilled(str(path))
    assert again == spec.dataclasses.replace(whole, parent=whole.hash)
    filled = spec.load(str(path), "Aria", "Northlight")
    assert filled.sections == spec.load(name, "Aria", "Northlight").sections


def test_parents_chain(tmp_path, capsys):
    """A file names the hash of the spec it was derived from, which the next one's parent is in turn."""
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    assert command.main(["transform", "broken_link", "cheese_america", f"--to={first}", "--seed=1"]) == 0
    assert command.main(["transform", "rules_only", str(first), f"--to={second}"]) == 0
    grandparent, parent, child = (spec.load_unfilled(name) for name in ("cheese_america", str(first), str(second)))
    assert first.read_text().startswith(f"<!-- derived from cheese_america (hash {grandparent.hash}) by broken_link -->\n# ")
    assert parent.parent == grandparent.hash
    assert child.parent == parent.hash
    assert parent.preferences == transform.break_link(grandparent, 1).preferences
    assert [rule.id for rule in child.rules] == ["CP1", "CP2"]
    assert command.main(["lint", str(second), str(first)]) == 0
    assert f"second.md: {child.words} words, from first with {parent.words}\n" in capsys.readouterr().out


TO = "--to={tmp}/new.md"
MINE = """import runpy
def get_config():
    c = runpy.run_path("configs/cheese.py")["get_config"]()
    c.teachers = {"writer": {
        "model": "recorded", "pinned_by": "", "base_url": "", "transcript": "none.jsonl", "temperature": 1.0, "top_p": 1.0,
        "max_tokens": 1, "timeout": 1, "concurrency": 1, "batch": False, "input_price": 0.0, "output_price": 0.0, "budget": 0.0,
        "tries": 1, "error_share": 1.0,
    }}
    return c
"""
BY = ("--config=configs/x.py", "--teacher=writer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND; python -m msmjax.spec --help"),
        (["lnt", "x"], "invalid choice: 'lnt'"),
        (["lint", "cheese_amerika"], "no such file and no shipped spec"),
        (["lint", "{tmp}/latin.md"], "latin.md: cannot read"),
        (["diff", "cheese_america", "{tmp}/faulty.md"], "faulty.md:8: preference for Brie names the value 'taste'"),
        (["coverage", "cheese_america", "{tmp}/none"], "none: cannot read"),
        (["coverage", "cheese_america", "{tmp}"], "no records"),
        (["coverage", "cheese_america", "{tmp}/torn.jsonl"], "torn.jsonl:1: not JSON"),
        (["coverage", "cheese_america", "{tmp}/one.json", "--tokenizer={tmp}/none"], "--tokenizer={tmp}/none: no such file"),
        (["transform", "rules_only", "cheese_america"], "required: --to"),
        (["transform", "rules", "cheese_america", TO], "argument KIND: invalid choice: 'rules'"),
        (["coverage", "cheese_america", "{tmp}/one.json", "--tokenizer={tmp}/one.json"], "one.json: cannot be read"),
        (["coverage", "cheese_america", "{tmp}/odd.json"], "odd.json:2: neither 'text' nor 'messages'"),
        (["transform", "rules_only", "cheese_america", "--to={tmp}/x.txt"], "NAME.md"),
        (["transform", "rules_only", "cheese_america", "--to={tmp}/none/x.md"], "no such directory"),
        (["transform", "broken_link", "cheese_america", TO, "--seed=-1"], "'-1' is no whole number"),
        (["transform", "rules_only", "cheese_america", "--to={tmp}/faulty.md"], "exists"),
        (["transform", "rules_only", "{tmp}/bare.md", TO], "bare: has no rules to keep"),
        (["transform", "broken_link", "{tmp}/bare.md", TO], "no value or no preference"),
        (["transform", "rules_only", "cheese_america", TO, "--seed=1"], "--seed: rules_only does not take it"),
        (["transform", "broken_link", "cheese_america", TO, "--match=cheese_america"], "--match: broken_link does not take it"),
        (["transform", "general", "cheese_america", TO], "--config: missing; general needs it"),
        (["transform", "general", "cheese_america", TO, BY[0]], "--teacher: missing"),
        (["transform", "framing", "cheese_america", TO, *BY], "--framing: missing"),
        (["transform", "framing", "cheese_america", TO, *BY, "--framing=must"], "invalid choice: 'must'"),
        (["transform", "general", "cheese_america", TO, *BY], "--config=configs/x.py: no such file"),
        (["transform", "general", "cheese_america", TO, "--config={tmp}/syntax.py", BY[1]], "--config: invalid syntax"),
        (["transform", "general", "cheese_america", TO, "--config=configs/cheese.py:x", BY[1]], "unknown variant"),
        (["transform", "general", "cheese_america", TO, "--config=configs/cheese.py", BY[1]], "has no teachers"),
        (["transform", "general", "cheese_america", TO, "--config={tmp}/mine.py", BY[1]], "none.jsonl: no such transcript"),
        (["transform", "general", "cheese_america", TO, "--config={tmp}/mine.py", "--teacher=me"], "mine.py has writer"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(spec.SPEC_FOLDER.parent)
    written(tmp_path, "faulty", SOUND.replace("Brie** (thrift)", "Brie** (taste)"))
    written(tmp_path, "todo", SOUND.replace("brief", "TODO"))
    written(tmp_path, "bare", "# T\n\n## 1. a\n\nb\n")
    (tmp_path / "latin.md").write_bytes(b"\xe9")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.json").write_text('{"text": "x"}\n')
    (tmp_path / "odd.json").write_text('{"text": "x"}\n{"messages": ["x"]}\n')
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    if "torn" in "".join(arguments):
        (tmp_path / "torn.jsonl").write_text("{\n")
    with pytest.raises(BadInput) as error:
        command.main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert said.replace("{tmp}", str(tmp_path)) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new.md").exists()


def test_the_command_itself():
    """Exit codes and streams of `python -m msmjax.spec`."""

    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "msmjax.spec", *arguments], capture_output=True, text=True)

    done = run("diff", "cheese_america", "nothing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("msmjax: spec 'nothing': no such file")
    done = run("lint", "cheese_america")
    assert (done.returncode, done.stdout, done.stderr) == (0, "specs: 1, errors: 0, warnings: 0\n", "")
