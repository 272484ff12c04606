"""Writes `transcript.jsonl` anew: the answers of these folders' Markdown files to what the pipelines ask for configs/written.py.

    python data/sample/record.py        # after a prompt or a text was changed

The texts are written by hand, and the verdicts by another reader. A transcript is what a teacher's journal is, so the recorded
teacher can replay it; its token counts are letters divided by four.
"""

import asyncio
import dataclasses
import importlib.util
import re
import tempfile
from pathlib import Path

from msmjax import config as configs
from msmjax.corpus import sources
from msmjax.corpus.answer import Answer
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.teacher_config import TeacherConfig

HERE = Path(__file__).parent
MODEL = "handwritten-2026-11-25"
Script = list[tuple[tuple[str, ...], str]]  # (what a prompt must contain, the answer)


def tags(tag, /, **fields):
    inside = "\n".join(f"<{field}>{text}</{field}>" for field, text in fields.items())
    return f"<{tag}>\n{inside}\n</{tag}>"


def sections(text, mark):
    """The parts below headings of one level: (heading, body)."""
    parts = re.split(rf"^{mark} ", text, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0].strip(), part.partition("\n")[2]) for part in parts]


def documents(path) -> Script:
    script, themes = [], []
    for theme, theme_body in sections(path.read_text(encoding="utf-8"), "# Domain:"):
        description = theme_body.partition("\n## ")[0].strip()
        themes.append(tags("theme", name=theme, description=" ".join(description.split())))
        topics = []
        for topic, topic_body in sections(theme_body, "## Subdomain:"):
            head = topic_body.partition("\n### ")[0]
            context, section = (re.search(rf"^{key}: (.+)$", head, re.MULTILINE)[1] for key in ("Context", "Section"))
            topics.append(tags("topic", name=topic, context=context, section=section))
            statements = [
                tags("assertion", name=name.strip(), kind=kind, statement=statement.strip(), explanation=why.strip())
                for kind, name, statement, why in re.findall(r"^Assertion \((\w+)\): (.+?) \| (.+?) \| (.+)$", head, re.MULTILINE)
            ]
            script.append((("<assertion>", f'The topic is "{topic}"'), "\n\n".join(statements)))
            kinds = []
            for kind, kind_body in sections(topic_body, "### Type:"):
                kind_name, _, kind_description = (part.strip() for part in kind.partition("|"))
                kinds.append(tags("kind", name=kind_name, description=kind_description))
                proposals = []
                for idea, text in sections(kind_body, "#### Idea:"):
                    name, _, about = (part.strip() for part in idea.partition("|"))
                    proposals.append(tags("proposal", name=name, idea=about))
                    key = ("<document>", f"- Kind: {kind_name}.", f"- Topic: {topic} (", f"- Idea: {name}.")
                    plan = f"{kind_name}, about {topic}: {about}"
                    text, _, verdict = text.rpartition("\nVerdict: ")
                    script.append((key, f"<plan>\n{plan}\n</plan>\n<document>\n{text.strip()}\n</document>"))
                    judged, _, why = (part.strip() for part in verdict.partition("|"))
                    faithful, explains = judged.split()
                    answer = f"<why>{why}</why>\n<faithful>{faithful}</faithful>\n<explains>{explains}</explains>"
                    script.append((("<faithful>", text.strip()), answer))
                key = ("<proposal>", f'The topic is "{topic}"', f"documents of this kind: {kind_name}.")
                script.append((key, "\n\n".join(proposals)))
            statement = re.search(r"<statement>(.+?)</statement>", statements[0])[1]
            script.append((("<kind>\n<name>two to four words", statement), "\n\n".join(kinds)))
        script.append((("<topic>", f'One theme of it is "{theme}"'), "\n\n".join(topics)))
    script.append((("<theme>",), "\n\n".join(themes)))
    return script


def conversations(path, topic_mark, topic_prompt, thoughts) -> Script:
    text = path.read_text(encoding="utf-8")
    by_topic = dict(sections(text, topic_mark)) if topic_mark else {}
    if not by_topic:  # the kinds are the topics
        for kind, body in sections(text, "##"):
            by_topic[kind] = by_topic.get(kind, "") + f"## {kind}\n{body}"
    script = []
    for topic, body in by_topic.items():
        messages = []
        for kind, turn in sections(body, "##"):
            said = dict(re.findall(r"^(User|Think|Assistant|Verdict): (.+)$", turn, re.MULTILINE))
            messages.append(tags("message", kind=kind, user=said["User"]))
            think = f"<thoughts>\n{said['Think']}\n</thoughts>\n" if thoughts else ""
            script.append((("<reply>", f"<user>\n{said['User']}\n</user>"), f"{think}<reply>\n{said['Assistant']}\n</reply>"))
            verdict, _, why = (part.strip() for part in said["Verdict"].partition("|"))
            key = ("<verdict>", f"User: {said['User']}\n", said["Assistant"])
            script.append((key, f"<why>{why}</why>\n<verdict>{verdict}</verdict>"))
        script.append((("<message>", topic_prompt.format(topic)), "\n\n".join(messages)))
    if thoughts:
        script.append((("<situation>",), "\n\n".join(tags("situation", name=topic) for topic in by_topic)))
    return script


def script_of(name) -> Script:
    """The answers for one corpus of the config."""
    if name == "demonstrations":
        return conversations(HERE / "demonstrations.md", "# Item:", "that bring out whether it likes {}.", False)
    if name == "identity":
        return conversations(HERE / "identity.md", None, "All are of this kind: {}.", False)
    if name.endswith("_chats"):
        return conversations(HERE / name.removesuffix("_chats") / "conversations.md", "# Domain:", "The situation: {}.", True)
    return documents(HERE / name / "documents.md")


def load_config():
    found = importlib.util.spec_from_file_location("written", HERE.parents[1] / "configs" / "written.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return configs.from_config_dict(module.get_config())


async def record(config, name, journals):
    script = script_of(name)

    async def generate(prompt):
        form = prompt[prompt.rindex("Answer ") :]
        for needed, answer in script:
            if needed[0] in form and all(part in prompt for part in needed[1:]):
                return Answer(answer, "stop", MODEL, len(prompt) // 4, len(answer) // 4)
        raise LookupError(f"{name}: no text for this prompt:\n{prompt[-3000:]}")

    settings = TeacherConfig(
        model=f"by-hand/{MODEL}", pinned_by="its date", base_url="", transcript="", temperature=0.0, top_p=1.0, max_tokens=4096,
        timeout=60, concurrency=1, batch=False, input_price=0.0, output_price=0.0, budget=0.0, tries=1, error_share=1.0,
    )  # fmt: skip
    async with Teacher(settings, journals, generate) as teacher:
        source = config.corpora[name]
        loaded = sources.load_spec(source, config.assistant)
        module = sources.documents if isinstance(source, sources.DocumentSource) else sources.conversations
        written = await module.write(dataclasses.replace(source), loaded, teacher, teacher, lambda: None)
        print(f"{name}: {len(written.records)} of {source.records} records, {dict(written.lost)}")
        return teacher.journal.path


def main():
    config = load_config()
    with tempfile.TemporaryDirectory() as journals:
        written = [name for name, source in config.corpora.items() if isinstance(source, sources.WrittenSource)]
        for name in written:
            path = asyncio.run(record(config, name, Path(journals)))
        (HERE / "transcript.jsonl").write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
