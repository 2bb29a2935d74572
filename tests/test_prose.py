"""The texts of the course: short sentences, short lines, and no word of the glossary before it is explained.

Pages are read in their order: `words`, then 00 to 13. The glossary leads each word to the section that explains it. An
earlier use on the way has to be a link, or bold with the explanation on the spot.
"""
import re
from pathlib import Path
from statistics import mean

import nbformat
import pytest

NBS = Path(__file__).parent.parent / 'nbs'
PAGES = ['words.ipynb', *sorted(path.name for path in NBS.glob('[0-9]*.ipynb'))]
MEAN, LONGEST, WIDTH = 14.5, 32, 100
# words that are also said in their everyday sense, which no search can tell from ours
EVERYDAY = {'body', 'claim', 'head', 'history', 'label', 'leak', 'minimum', 'patience', 'phase', 'process', 'rank',
            'resume', 'slice', 'steep', 'suggestion', 'valley'}


def sections(name):
    "Anchor and text of each section of a page, in order; the title and its quote are not among them."
    anchor, found = '', []
    for cell in nbformat.read(NBS / name, 4).cells[2:]:
        if cell.cell_type == 'markdown':
            for part in re.split(r'^(?=##+ )', re.sub(r'(?s)```.*?```', '', cell.source), flags=re.M):
                if heading := re.match(r'##+ (.*)\n?', part):
                    anchor, part = slug(heading[1]), part[heading.end():]
                found.append((anchor, part))
    return found


def slug(heading):
    "The address of a section, as Quarto makes it."
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading).lower()).strip())


def glossary():
    "Page and section that explain each word, or a page of the engine or the tools."
    text = '\n'.join(cell.source for cell in nbformat.read(NBS / 'glossary.ipynb', 4).cells)
    return {word: (page, anchor) for word, page, anchor in re.findall(r'^- \[(.+?)\]\(([\w/.]+)(?:#([\w-]+))?\)', text, re.M)}


def pattern(word):
    "The word, or its plural, as a whole word."
    stem = re.escape(word).replace(r'\ ', r'[\s-]+')
    stem = stem[:-1] + '(?:y|ies)' if word.endswith('y') else stem + '(?:e?s)?'
    stem = stem.replace('optimiser', 'optimi[sz]er').replace('normalisation', 'normali[sz]ation')
    return re.compile(rf'(?<![\w-]){stem}(?![\w-])', re.I)


def plain(text):
    "Prose without code, mathematics, addresses and the line of links below a title."
    text = re.sub(r'^\[Open in Colab\].*$', '', text, flags=re.M)
    return re.sub(r'<[^>]*>|\$\$.*?\$\$|`[^`]*`', ' ', text, flags=re.S)


def first_use(word, parts):
    "Number of the section and whether it is a link or bold there, of the first use; None without one."
    for i, (_, text) in enumerate(parts):
        if found := pattern(word).search(re.sub(r'\]\([^)]*\)', lambda m: ']' + '\0' * (len(m[0]) - 1), plain(text))):
            whole = plain(text)
            marked = [m.span() for m in re.finditer(r'\[[^\]]*\]\([^)]*\)|\*\*[^*]+\*\*', whole, re.S)]
            return i, any(start <= found.start() < end for start, end in marked), found.start()
    return None


def unexplained(name):
    "Each word of the glossary that this page uses before it, or a page before it, explains the word."
    parts, order = sections(name), PAGES.index(name)
    for word, (page, anchor) in glossary().items():
        use = first_use(word, parts)
        if word in EVERYDAY or re.search('_', word) or use is None or use[1]:
            continue
        if page in PAGES[:order] or any((old := first_use(word, sections(p))) and old[1] for p in PAGES[:order]):
            continue
        if page == name and use[0] >= min(i for i, (a, _) in enumerate(parts) if a == anchor):
            continue
        text = re.sub(r'\s+', ' ', plain(parts[use[0]][1])[max(0, use[2] - 40):use[2] + 30])
        yield f'{word} (explained in {page}#{anchor}), in #{parts[use[0]][0]}: ...{text}...'


def sentences(name):
    "The sentences of a page, without tables, code and headings."
    for _, text in sections(name):
        paragraphs, text = [[]], re.sub(r'^\|.*$', '', plain(re.sub(r'`[^`]*`', 'CODE', text)), flags=re.M)
        for line in text.splitlines():
            if not line.strip() or re.match(r'\s*([-*>]|\d+\.) ', line):
                paragraphs.append([])
            paragraphs[-1].append(re.sub(r'^\s*([-*>]|\d+\.) ', '', line).strip())
        for paragraph in paragraphs:
            joined = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', ' '.join(paragraph))
            yield from re.split(r'(?<=[.!?:])["\'*)”]*\s+(?=[A-Z*"\[(“])', joined)


def length(sentence):
    return len(re.findall(r"[\w’'-]+", sentence))


@pytest.mark.parametrize('name', PAGES)
def test_words_are_explained_before_they_are_used(name):
    assert list(unexplained(name)) == []


@pytest.mark.parametrize('name', PAGES)
def test_sentences_are_short(name):
    said = [sentence for sentence in sentences(name) if length(sentence) > 1]
    assert [sentence for sentence in said if length(sentence) > LONGEST] == []
    assert mean(map(length, said)) <= MEAN


@pytest.mark.parametrize('name', PAGES)
def test_lines_are_short(name):
    text = '\n'.join(text for _, text in sections(name))
    long = [line for line in text.splitlines() if len(re.sub(r'\]\([^)]*\)|`[^`]*`', '', line)) > WIDTH]
    assert [line for line in long if not line.startswith(('|', '<', '[Open in Colab]'))] == []


def whole_section(name, anchor):
    "A section with its heading and its code; a hyphen is a space."
    cells, text, inside = nbformat.read(NBS / name, 4).cells, '', False
    for part in re.split(r'^(?=##+ )', '\n'.join(cell.source for cell in cells), flags=re.M):
        heading = re.match(r'##+ (.*)', part)
        inside = slug(heading[1]) == anchor if heading else inside
        text += part if inside else ''
    return re.sub(r'[`*_-]', ' ', text)


def test_the_glossary_leads_to_sections_that_say_the_word():
    wrong = [word for word, (page, anchor) in glossary().items() if page in PAGES and anchor
             and not re.search(re.sub('ing$', '', re.sub('[_-]', ' ', word)), whole_section(page, anchor), re.I)
             and not pattern(re.sub('[_-]', ' ', word)).search(whole_section(page, anchor))]
    assert wrong == []
