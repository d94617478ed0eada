"""AG News: its format read to the letter, what is refused, bags and token ids against oracles, and the made news."""

import csv
import hashlib
import math
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from nls import fit_stack, text
from nls.data import dataset_names, load_dataset
from nls.text import load_text, tokenize, write_made_news

SPLITS = ("train", "validation", "test")
ROW = '"3","Oil","Prices fell."\n'


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("NLS_DATA", raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_made_news(tmp_path_factory.mktemp("made"), num_train=800, num_test=200, seed=3)


def parts(data, key):
    return [getattr(data, f"{split}_{key}") for split in SPLITS]


def plain_rows(count, offset=0):
    """Rows in the format whose texts all differ, of the four classes in turn."""
    return "".join(f'"{i % 4 + 1}","Title {i + offset}","Text of class {i % 4} and number {i}"\n' for i in range(count))


def write(root, train=None, test=None, inside="ag_news_csv", **files):
    """Write the two files, and others beside them, into a folder below ``root``."""
    folder = root / inside
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train.csv": train or plain_rows(200), "test.csv": test or plain_rows(40, 1000)} | files
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def naive_rows(content):
    """Read quoted columns letter by letter: a doubled quote is a quote, anything else is itself."""
    rows, row, column, inside, position = [], [], "", False, 0
    while position < len(content):
        letter = content[position]
        if inside and content[position : position + 2] == '""':
            column, position = column + '"', position + 1
        elif letter == '"':
            inside = not inside
        elif letter in ",\n" and not inside:
            row, column = [*row, column], ""
            if letter == "\n":
                rows, row = [*rows, row], []
        else:
            column += letter
        position += 1
    return rows


def naive_texts(folder, split):
    """Labels and words of a file, by other means than the module's."""
    rows = naive_rows((folder / "ag_news_csv" / f"{split}.csv").read_text(encoding="utf-8"))
    return [int(label) - 1 for label, *_ in rows], [tokenize(f"{title} {body}") for _, title, body in rows]


# Words.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("Wall St. Bears", ["wall", "st", "bears"]),
        ("second\\team of rocketeers\\", ["second", "team", "of", "rocketeers"]),
        ("Robinho #39;s mother, Sean O #39;Keefe", ["robinho's", "mother", "sean", "o'keefe"]),
        ("the  #36;10 million and \\$12", ["the", "10", "million", "and", "12"]),
        ("  quot;Music quot; R amp;D &lt;TXN.N&gt; &lt;b&gt;...&lt;/b&gt;", ["music", "r", "d", "txn", "n", "b", "b"]),
        ('a """phishing"" mail', ["a", "phishing", "mail"]),
        ("don't 'quote' rock'n'roll it\N{RIGHT SINGLE QUOTATION MARK}s", ["don't", "quote", "rock'n'roll", "it's"]),
        ("ZÜRICH Straße ИЖЕВСК 東京", ["zürich", "strasse", "ижевск", "東京"]),
        ("snake_case e-mail 3.5", ["snake", "case", "e", "mail", "3", "5"]),
        ("lt gt; amplt; quote;", ["lt", "amplt", "quote"]),
        ("", []),
    ],
)
def test_words(given, words):
    assert tokenize(given) == words
    assert tokenize(unicodedata.normalize("NFD", given)) == words


def test_words_need_a_text():
    with pytest.raises(TypeError, match=r"text must be a string, got 3 \(int\)"):
        tokenize(3)


# The format.


def test_the_oddities_of_the_released_files_are_read_to_the_letter(tmp_path):
    rows = [
        '"4","The ""Music"" Manifesto","Quoted ""twice"", with a comma"',
        '"4","Ends in a backslash\\","so it does\\"',
        '"1","second\\team","a \\""quoted\\"" word, and \\$12"',
        '"2","two\nlines","a line break inside"',
        '3,"class without quotes",""',
        '"2"," leading space ","naïve café"',
    ]
    write(tmp_path, plain_rows(200), "\n".join(rows) + "\n" + plain_rows(4))
    news = text._read_news(tmp_path)
    assert news.num_train == 200
    assert news.labels[200:206].tolist() == [3, 3, 0, 1, 2, 1]
    _, expected = naive_texts(tmp_path, "test")
    assert expected[1] == ["ends", "in", "a", "backslash", "so", "it", "does"]
    found = [
        [news.words[i] for i in news.ids[start:stop]]
        for start, stop in zip(news.starts[200:], news.starts[201:], strict=False)
    ]
    assert found == expected


def test_another_reader_of_the_format_glues_rows_together(tmp_path):
    """The trap that the module's head warns of; the count of rows is what a careless reader would lose."""
    write(tmp_path, '"1","a","b\\"\n' * 3 + plain_rows(200))
    path = tmp_path / "ag_news_csv" / "train.csv"
    with path.open(newline="") as file:
        careless = sum(1 for _ in csv.reader(file, escapechar="\\"))
    assert careless < 203
    assert len(text._read_news(tmp_path).labels) == 203 + 40


def test_byte_order_mark_blank_lines_and_carriage_returns(tmp_path):
    train = "\ufeff" + plain_rows(200).replace("\n", "\r\n") + "\r\n\r\n"
    data = load_text("ag_news", write(tmp_path, train))
    assert data.card.split_sizes == (180, 20, 40)


@pytest.mark.parametrize("inside", ["ag_news_csv", "ag_news", "AG_NEWS", "."])
def test_folders(tmp_path, inside):
    data = load_text("ag_news", write(tmp_path, inside=inside))
    assert data.class_names == ("World", "Sports", "Business", "Sci/Tech")
    assert data.test_labels.tolist() == [i % 4 for i in range(40)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (b"\n\n", r"train\.csv has no rows"),
        (plain_rows(8)[:-6], r"line 8: unexpected end of data \(quotes inside a column are doubled"),
        (plain_rows(8)[:-1], "line 8: expected a line break at its end; the file may be cut short"),
        (
            plain_rows(8) + '"1","cut"\n',
            r"line 9: expected 3 columns \(class, title, description\), got 2; is the file",
        ),
        (plain_rows(8) + '"1","a","b","c"\n', "line 9: expected 3 columns .* got 4"),
        (plain_rows(8) + '"0","a","b"\n', "line 9: expected a class 1 to 4, got '0'$"),
        (plain_rows(8) + '"5","a","b"\n', "line 9: expected a class 1 to 4, got '5'$"),
        (plain_rows(8) + '" 1","a","b"\n', "line 9: expected a class 1 to 4, got ' 1'$"),
        ("class,title,description\n" + plain_rows(8), "line 1: expected a class .* got 'class'; .* have no header"),
        (plain_rows(8) + '"1","a \\"quoted\\" word","b"\n', "line 9: ',' expected after '\"' .* doubled, not escaped"),
        (plain_rows(8) + '"1","never closed\n' + plain_rows(3), "line 10: ',' expected after"),
        (plain_rows(8) + f'"1","a","{"x" * 140000}"\n', "line 9: field larger than field limit"),
        (plain_rows(8).encode("utf-16"), r"train\.csv is not in UTF-8"),
        ('"1","caf\xe9","a"\n'.encode("latin-1"), r"train\.csv is not in UTF-8"),
        ("".join(f'"{i % 4 + 1}","a{i}","b{i}"\n' for i in range(80)), "have a word that occurs twice, found none"),
        (plain_rows(200).replace('"4","', '"1","'), "class 'Sci/Tech' does not occur in the train split"),
    ],
)
def test_refused_files(tmp_path, train, message):
    write(tmp_path, train)
    with pytest.raises(ValueError, match=message):
        load_text("ag_news", tmp_path)


def test_empty_file(tmp_path):
    write(tmp_path)
    (tmp_path / "ag_news_csv" / "test.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"test\.csv has no rows"):
        load_text("ag_news", tmp_path)


def test_other_classes_are_refused(tmp_path):
    assert load_text("ag_news", write(tmp_path, **{"classes.txt": "World\nSports\nBusiness\nSci/Tech\n"}))
    write(tmp_path, **{"classes.txt": "Sports\nWorld\nBusiness\nSci/Tech\n"}, train=plain_rows(204))
    with pytest.raises(ValueError, match=r"classes\.txt must name the classes World, Sports, .* got Sports, World,"):
        load_text("ag_news", tmp_path)


def test_missing_files_are_told_how_to_get(tmp_path):
    for folder, told in ((None, "needs root="), (tmp_path, r"holds no ag_news_csv/train\.csv")):
        with pytest.raises(ValueError, match=told) as error:
            load_text("ag_news", folder)
        for step in (
            "github.com/mhjabreel/CharCnn_Keras",
            "ag_news_csv.tar.gz",
            'load_dataset("ag_news", root=FOLDER)',
        ):
            assert step in str(error.value)
        assert "write_made_news(FOLDER)" in str(error.value)
    write(tmp_path)
    (tmp_path / "ag_news_csv" / "test.csv").unlink()
    with pytest.raises(ValueError, match=r"test\.csv is missing, beside train\.csv; to get the real ones"):
        load_text("ag_news", tmp_path)
    with pytest.raises(TypeError, match=r"folder must be the path of a folder, got 3 \(int\)"):
        load_text("ag_news", 3)


def test_no_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path))
    assert load_text("ag_news", ".").card.split_sizes == (180, 20, 40)
    with pytest.raises(ValueError, match="'' holds no ag_news_csv"):
        load_text("ag_news", "")


def test_two_copies_are_refused(tmp_path):
    write(write(tmp_path), inside="ag_news")
    with pytest.raises(ValueError, match=r"holds AG News twice, in .*ag_news_csv and .*ag_news; keep one"):
        load_text("ag_news", tmp_path)


def test_refused_arguments(made):
    with pytest.raises(ValueError, match="name must be one of 'ag_news', 'ag_news_tokens', got 'news'"):
        load_text("news", made)
    with pytest.raises(ValueError, match="num_examples must be at least 40, got 39"):
        load_text("ag_news", made, num_examples=39)
    with pytest.raises(ValueError, match="num_examples must be at most 800, got 801"):
        load_text("ag_news", made, num_examples=801)
    with pytest.raises(TypeError, match="seed must be an integer"):
        load_text("ag_news", made, seed=0.5)


def test_a_file_that_changes_is_read_again(tmp_path):
    write(tmp_path)
    assert load_text("ag_news", tmp_path).card.split_sizes == (180, 20, 40)
    write(tmp_path, plain_rows(400))
    assert load_text("ag_news", tmp_path).card.split_sizes == (360, 40, 40)


# Which files they are.


def test_card_of_made_news(made):
    card = load_text("ag_news", made).card
    assert card.source == "made by nls.text.write_made_news"
    assert card.description.startswith("Made news: random words")
    assert "No news. 800 training and 200 test texts." in card.description


def test_made_news_with_another_file_is_no_made_news(tmp_path):
    write_made_news(tmp_path, 80, 20)
    (tmp_path / "ag_news_csv" / "test.csv").write_text(plain_rows(40))
    card = load_text("ag_news", tmp_path).card
    assert card.source == "your own files"
    readme = tmp_path / "ag_news_csv" / "readme.txt"
    digests = [hashlib.md5((readme.parent / f"{split}.csv").read_bytes()).hexdigest() for split in ("train", "test")]
    readme.write_text(f"A list of sums: {digests}")
    assert load_text("ag_news", tmp_path).card.source == "your own files"
    assert card.description.startswith(
        "Not the released files: 80 training and 40 test texts, there are 120,000 and 7,600"
    )


def test_released_files_are_known_by_their_digests(tmp_path, monkeypatch):
    train, test = plain_rows(200), plain_rows(40, 1000)
    digests = [hashlib.md5(content.encode()).hexdigest() for content in (train, test)]
    monkeypatch.setattr(text, "_RELEASED", {"train": (200, digests[0]), "test": (40, digests[1])})
    card = load_text("ag_news", write(tmp_path / "same", train, test)).card
    assert card.description == "The released files, by their MD5: 200 training and 40 test texts."
    assert card.licence == "research, non-commercial"
    card = load_text("ag_news", write(tmp_path / "edited", train.replace("Title 7", "Title x"), test)).card
    assert "Not the released files: 200 training and 40 test texts, as many as there, but with other MD5" in str(card)
    assert card.licence == "yours to know"
    card = load_text("ag_news", write(tmp_path / "short", plain_rows(196), test)).card
    assert "Not the released files: 196 training and 40 test texts, there are 200 and 40" in str(card)


def test_the_released_files_are_those_that_torchtext_checks():
    assert text._RELEASED == {
        "train": (120000, "b1a00f826fdfbd249f79597b59e1dc12"),
        "test": (7600, "d52ea96a97a2d943681189a97654912d"),
    }


# Splits.


def test_splits(made):
    data = load_text("ag_news", made, seed=5)
    assert data.card.split_sizes == (720, 80, 200)
    for split, file in (("train", "train"), ("validation", "train"), ("test", "test")):
        labels, _ = naive_texts(made, file)
        rows = getattr(data, f"{split}_indices").tolist()
        assert getattr(data, f"{split}_labels").tolist() == [labels[row] for row in rows]
        assert getattr(data, f"{split}_labels").dtype == torch.int64
    train, validation, test = (set(rows.tolist()) for rows in parts(data, "indices"))
    assert train | validation == set(range(800))
    assert not train & validation
    assert data.test_indices.tolist() == list(range(200)) == sorted(test)
    assert torch.bincount(data.validation_labels).tolist() == [20] * 4
    assert data.train_indices.tolist() != sorted(train)


def test_a_seed_is_a_split(made):
    first, again, other = (load_text("ag_news_tokens", made, seed=seed) for seed in (1, 1, 2))
    for key in ("features", "labels", "indices"):
        assert all(torch.equal(a, b) for a, b in zip(parts(first, key), parts(again, key), strict=True))
    assert set(first.validation_indices.tolist()) != set(other.validation_indices.tolist())
    bags = load_text("ag_news", made, seed=1)
    assert torch.equal(bags.train_indices, first.train_indices)


def test_a_smaller_number_is_part_of_a_larger_one(made):
    some, more = (load_text("ag_news", made, 4, size) for size in (80, 400))
    kept = [set(torch.cat(parts(data, "indices")[:2]).tolist()) for data in (some, more)]
    assert [len(rows) for rows in kept] == [80, 400]
    assert kept[0] < kept[1]
    assert torch.bincount(torch.cat(parts(some, "labels")[:2])).tolist() == [20] * 4


def test_texts_of_the_same_words_are_not_validated_on(tmp_path):
    twins = "".join(
        f'"{i % 4 + 1}","SAME {i // 2}","the words"\n"{i % 4 + 1}","same {i // 2}","The words!"\n' for i in range(100)
    )
    data = load_text("ag_news_tokens", write(tmp_path, plain_rows(100) + twins, ROW * 2 + plain_rows(4)))
    assert data.validation_indices.max() < 100
    assert len(data.validation_labels) == 30
    # Of 50 pairs of pairs 3 of 4 repeat an earlier text; of the test rows one repeats the other, four the training.
    assert data.card.duplicates == 150 + 1 + 4


# Bags of words.


def test_bags_are_those_of_scikit_learn(made):
    data = load_text("ag_news", made, seed=2)
    texts = {file: naive_texts(made, file)[1] for file in ("train", "test")}
    documents = [
        [texts["test" if split == "test" else "train"][row] for row in getattr(data, f"{split}_indices").tolist()]
        for split in SPLITS
    ]
    counts = Counter(word for words in documents[0] for word in words)
    vocabulary = sorted((word for word in counts if counts[word] >= 2), key=lambda word: (-counts[word], word))
    oracle = TfidfVectorizer(analyzer=lambda words: words, vocabulary=vocabulary)
    oracle.fit(documents[0])
    for features, words in zip(parts(data, "features"), documents, strict=True):
        assert features.dtype == torch.float32
        np.testing.assert_allclose(features.numpy(), oracle.transform(words).toarray(), atol=2e-6)
    assert f"the {len(vocabulary)} words" in data.card.preparation


def test_the_vocabulary_is_that_of_the_training_split(tmp_path):
    test = "".join(f'"{i % 4 + 1}","unseen unseen","number {i}"\n' for i in range(40))
    data = load_text("ag_news", write(tmp_path, test=test))
    # Of the test texts only "number" is known, and perhaps a numeral of a training text.
    assert int((data.test_features > 0).sum(1).max()) <= 2
    held_out = set(data.validation_indices.tolist())
    counts = Counter(
        word
        for i in range(200)
        if i not in held_out
        for word in tokenize(f"Title {i} Text of class {i % 4} and number {i}")
    )
    assert data.num_features == sum(count >= 2 for count in counts.values())


def test_the_vocabulary_is_cut_to_the_most_frequent_words(made, monkeypatch):
    whole = load_text("ag_news", made)
    monkeypatch.setattr(text, "BAG_WORDS", 50)
    data = load_text("ag_news", made)
    assert data.train_features.shape == (720, 50)
    kept = whole.train_features[:, :50]
    torch.testing.assert_close(data.train_features, kept / kept.norm(dim=1, keepdim=True))


def test_a_text_without_known_words_is_a_zero(tmp_path):
    data = load_text("ag_news", write(tmp_path, test='"1","",""\n"2","...","?"\n"3","xyzzy",""\n' + plain_rows(4)))
    assert data.test_features[:3].count_nonzero() == 0
    assert bool(data.test_features.isfinite().all())
    tokens = load_text("ag_news_tokens", tmp_path)
    assert tokens.test_features[:3].sum(1).tolist() == [0, 0, 1]


def test_the_card_states_the_memory(made):
    data = load_text("ag_news", made)
    megabytes = sum(features.nbytes for features in parts(data, "features")) / 1e6
    assert f"dense float32, {megabytes:.0f} MB" in data.card.preparation


# Token ids.


def test_token_ids_against_a_loop(made, monkeypatch):
    monkeypatch.setattr(text, "TOKEN_LENGTH", 30)
    monkeypatch.setattr(text, "TOKEN_WORDS", 300)
    data = load_text("ag_news_tokens", made, seed=2)
    texts = {file: naive_texts(made, file)[1] for file in ("train", "test")}
    counts = Counter(word for row in data.train_indices.tolist() for word in texts["train"][row][:30])
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:300]
    ids = {word: place + 2 for place, word in enumerate(ranked)}
    for split, features in zip(SPLITS, parts(data, "features"), strict=True):
        assert features.dtype == torch.int64
        for row, found in zip(getattr(data, f"{split}_indices").tolist(), features.tolist(), strict=True):
            words = texts["test" if split == "test" else "train"][row][:30]
            assert found == [ids.get(word, 1) for word in words] + [0] * (30 - len(words))
    assert data.num_features == 30


def test_every_id_occurs_in_training(made):
    data = load_text("ag_news_tokens", made)
    seen = data.train_features.unique().tolist()
    assert seen == list(range(len(seen)))
    assert all(int(features.max()) < len(seen) for features in parts(data, "features"))
    assert f"2 to {len(seen) - 1} are" in data.card.preparation


# The classifier.


def test_fasttext_starts_small():
    torch.manual_seed(0)
    network = text.fasttext_classifier(4, vocabulary=1000, width=8)
    embeddings = network[0].weight.detach()
    assert embeddings.shape == (1000, 8)
    assert embeddings[0].tolist() == [0.0] * 8
    assert float(embeddings.abs().max()) <= 1 / 8
    # The standard deviation of a uniform on [-a, a] is a / sqrt(3).
    assert float(embeddings[1:].std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)
    assert all(not parameter.any() for parameter in network[1].parameters())


def test_fasttext_is_linear_in_the_mean_of_the_embeddings():
    torch.manual_seed(0)
    network = text.fasttext_classifier(3, vocabulary=10, width=4)
    torch.nn.init.normal_(network[1].weight)
    (bag, linear), ids = network, torch.tensor([[2, 5, 5, 0, 0], [9, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    expected = [bag.weight[[2, 5, 5]].mean(0), bag.weight[[9, 1]].mean(0), torch.zeros(4)]
    torch.testing.assert_close(network(ids), torch.stack(expected) @ linear.weight.T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 10, 4), "num_classes must be at least 2, got 1"),
        ((2, 1, 4), "vocabulary must be at least 2, got 1"),
        ((2, 10, 0), "width must be at least 1, got 0"),
    ],
)
def test_refused_sizes_of_fasttext(arguments, message):
    with pytest.raises(ValueError, match=message):
        text.fasttext_classifier(*arguments)


# Behind load_dataset.


@pytest.mark.parametrize("name", ["ag_news", "ag_news_tokens"])
def test_load_dataset(made, name, monkeypatch):
    assert name in dataset_names()
    expected = load_text(name, made, 7, 100)
    monkeypatch.setenv("NLS_DATA", str(made))
    for data in (load_dataset(name, made, 7, num_examples=100), load_dataset(name, seed=7, num_examples=100)):
        assert repr(data) == repr(expected)
        assert torch.equal(data.train_features, expected.train_features)
    monkeypatch.delenv("NLS_DATA")
    with pytest.raises(ValueError, match="AG News needs root="):
        load_dataset(name)


# Made news.


def test_made_news_has_the_format_and_its_oddities(made):
    folder = made / "ag_news_csv"
    assert (folder / "classes.txt").read_text().split("\n") == ["World", "Sports", "Business", "Sci/Tech", ""]
    content = (folder / "train.csv").read_text(encoding="utf-8")
    rows = naive_rows(content)
    assert [len(row) for row in rows] == [3] * 800
    assert Counter(label for label, *_ in rows) == dict.fromkeys("1234", 200)
    assert all(line.startswith('"') and line.endswith('"') for line in content.splitlines())
    for oddity in ('""', '\\"\n', "\\", " #39;s", " quot;"):
        assert oddity in content
    assert not content.isascii()
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == rows
    lengths = [len(words) for words in naive_texts(made, "train")[1]]
    assert (min(lengths), max(lengths)) == (25, 50)


def test_made_news_depends_on_the_seed_but_its_words_do_not(made, tmp_path):
    again = write_made_news(tmp_path / "again", num_train=800, num_test=200, seed=3)
    other = write_made_news(tmp_path / "other", num_train=800, num_test=200, seed=4)
    contents = [(root / "ag_news_csv" / "train.csv").read_bytes() for root in (made, again, other)]
    assert contents[0] == contents[1] != contents[2]
    words = [{word for words in naive_texts(root, "train")[1] for word in words} for root in (made, other)]
    assert len(words[0] & words[1]) > 0.7 * len(words[0])


def test_words_of_made_news_have_the_stated_shares(made):
    words = text._made_words()
    assert len(set(words)) == 60 + 600 + 4 * 300
    text._made_words.cache_clear()
    assert text._made_words() == words
    assert [tokenize(word) for word in words] == [[word.casefold()] for word in words]
    place = {word.casefold(): i for i, word in enumerate(words)}
    labels, texts = naive_texts(made, "train")
    drawn = np.array([place[word.removesuffix("'s")] for words in texts for word in words])
    owners = np.repeat(labels, [len(words) for words in texts])
    n = len(drawn)
    groups = [drawn < 60, (drawn >= 60) & (drawn < 660), drawn >= 660]
    for group, share in zip(groups, (0.45, 0.37, 0.18), strict=True):
        assert abs(group.mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
    # In 15 % of the texts half of the topic's words come from another topic.
    own = ((drawn - 660) // 300 == owners)[groups[2]].mean()
    assert abs(own - (1 - 0.15 / 2)) < 0.02
    first = (drawn[groups[0]] == 0).mean()
    assert abs(first - 0.5 / sum(1 / (2 + rank) for rank in range(60))) < 4 * math.sqrt(0.13 / groups[0].sum())


def test_made_news_is_neither_trivial_nor_hopeless(tmp_path):
    data = load_text("ag_news", write_made_news(tmp_path, 2000, 1000))
    fit = fit_stack(
        data.train_features, data.train_labels[None], num_classes=4, hidden=(), epochs=10, learning_rate=0.02
    )
    accuracy = (fit.stack.forward(data.test_features)[0].argmax(1) == data.test_labels).double().mean()
    assert 0.85 < float(accuracy) < 0.96


def test_news_that_was_not_made_is_not_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="was not made by write_made_news; it is not overwritten"):
        write_made_news(tmp_path, 80, 20)
    assert (tmp_path / "ag_news_csv" / "train.csv").read_text() == plain_rows(200)
    write_made_news(tmp_path / "own", 80, 20)
    write_made_news(tmp_path / "own", 120, 20)
    assert load_text("ag_news", tmp_path / "own").card.split_sizes == (108, 12, 20)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_train": 39}, ValueError, "num_train must be at least 40, got 39"),
        ({"num_test": 3}, ValueError, "num_test must be at least 4, got 3"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"folder": 5}, TypeError, "folder must be the path of a folder, got 5"),
        ({"folder": ""}, TypeError, "folder must be the path of a folder, got ''"),
    ],
)
def test_refused_arguments_of_made_news(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        write_made_news(**{"folder": tmp_path} | arguments)
    assert list(tmp_path.iterdir()) == []
