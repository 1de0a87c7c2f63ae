"""Collections that somebody brings: made-up rows in the form of the published files, made one as conf/data says."""

import re
import subprocess

import pytest

from src.config import build
from src.config.command_line import CONF, compose
from src.data.prompts import make_task, questions_of
from src.runs import identity

COMMENTS = "COMMENT_ID,AUTHOR,DATE,CONTENT,CLASS"
TWEETS = (
    "tweet_id,airline_sentiment,airline_sentiment_confidence,negativereason,negativereason_confidence,airline,"
    "airline_sentiment_gold,name,negativereason_gold,retweet_count,text,tweet_coord,tweet_created,tweet_location,"
    "user_timezone"
)
SAID = {"negative": "my bag is lost", "neutral": "do you fly", "positive": "thank you all"}
ASKED = {
    "ABBR:exp": "What is the full form of the letters :",
    "DESC:manner": "How do tides come and go : why",
    "ENTY:animal": "Which bird swims under ice",
    "HUM:ind": "Who wrote the first page",
    "LOC:city": "Where is the oldest bridge",
}
spam = [f'z1{i},Someone {i},2013-11-07T06:20:48,"see my ""song"", {i * "really "}\ufeff",1' for i in range(5)]
ham = [f"z2{i},Anna,,what a voice {i * 'la '},0" for i in range(5)]
tweets = [
    f'57030{n},{label},1.0,,,United,,someone,,0,"@united {words},\nand {n * "more "}",,2015-02-24 11:35:52 -0800,,'
    for label, words in SAID.items()
    for n in range(4)
]
questions = [f"{kind} {question} {n * 'so '}caf\xe9 ?" for kind, question in ASKED.items() for n in range(4)]
distances = [f"NUM:dist How far is it to the {place} ?" for place in ("moon", "sea", "pole", "inn")]
PUBLISHED = {
    "youtube": {
        "Youtube01-Psy.csv": "\n".join([COMMENTS, *spam]),  # without a line break at its end
        "Youtube02-KatyPerry.csv": "\n".join([COMMENTS, *ham, ""]),
    },
    "trec": {"train_5500.label": "\n".join([*questions, ""]), "TREC_10.label": "\n".join([*distances, ""])},
    "airlines": {"Tweets.csv": "\r\n".join([TWEETS, *tweets, ""])},
}
LABELS = {
    "youtube": ("0", "1"),
    "trec": ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
    "airlines": ("negative", "neutral", "positive"),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_published_files_become_what_the_config_reads(name, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for file, content in PUBLISHED[name].items():
        (tmp_path / file).write_bytes(content.encode("latin-1" if name == "trec" else "utf-8"))
    comment = (CONF / "data" / f"{name}.yaml").read_text(encoding="utf-8")
    command = re.search(r"^#   (.*)$", comment, re.MULTILINE)
    subprocess.run(command[1] if command else "cp Tweets.csv data/", shell=True, cwd=tmp_path, check=True)
    (made,) = (tmp_path / "data").iterdir()
    monkeypatch.setenv(name.upper(), str(made))
    cfg = compose("train", [f"data={name}", "data.split=deduplicated"])
    data = build.build_data(cfg)
    assert data.labels == LABELS[name]
    assert len(data.corpus.examples) == {"youtube": 10, "trec": 24, "airlines": 12}[name]
    texts = [example.text for example in data.corpus.examples]
    assert not any("CONTENT" in text or "dist" in text or "exp " in text for text in texts)
    if name == "trec":
        assert texts[0] == "What is the full form of the letters : caf\xe9 ?"
    task = make_task(questions_of(identity.plain(cfg.data), data.labels)[0], "{instruction} {text} ->")
    assert len(set(map(tuple, task.answers))) == len(data.labels)
    assert identity.sources(identity.plain(cfg)) == {"data.path": made, "gpt.weights": identity.pinned_weights("mini")}
