"""The site without Quarto: nbdev's own processing of a copy of the notebooks, and pages much like Quarto's made of it."""
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mistune
import nbformat

ROOT = Path(__file__).parent.parent
PROCESS = '''
import os, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path.insert(0, str(root))
os.chdir(root / 'nbs')
from nbdev import serve_drv
from nbdev.processors import FilterDefaults
for path in sorted((root / 'nbs').rglob('*.ipynb')):
    to = root / '_proc' / path.relative_to(root / 'nbs')
    to.parent.mkdir(parents=True, exist_ok=True)
    serve_drv.main((path, to, FilterDefaults))
heavy = {'torch', 'matplotlib', 'torchvision'} & set(sys.modules)
print('loaded:', *sorted(heavy))
'''


def processed(folder):
    "Run what nbdev runs before Quarto, on a copy in `folder`: notebooks by their path below `nbs`, and what it printed."
    copy = folder / 'copy'
    ignore = shutil.ignore_patterns('.git', '__pycache__', '*.egg-info', 'build', 'dist', 'tests', 'benchmarks', '_proc',
                                    '.ipynb_checkpoints')
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    done = subprocess.run([sys.executable, '-c', PROCESS, copy], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(copy)})
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(copy / '_proc').as_posix(): nbformat.read(path, 4)
             for path in sorted((copy / '_proc').rglob('*.ipynb'))}
    return pages, done.stdout + done.stderr


def pandoc_id(heading):
    "The name that Pandoc gives to a heading in HTML: letters, digits and -_. of it, from the first letter on."
    text = html.unescape(re.sub('<[^>]*>', '', heading)).lower()
    return re.sub(r'^[\W\d_]+', '', '-'.join(re.sub(r'[^\w\-. ]', '', text).split()))


def markdown_html(text):
    "Markdown with Pandoc's raw HTML, headings with ids and links with classes, as HTML."
    kept = []
    def keep(found):
        kept.append(found[2])
        return f'\n\nKEPT{len(kept) - 1}KEPT\n\n'
    text = re.sub(r'(?ms)^(`{3,})\{=html\}\n(.*?)\n\1$', keep, text)
    text = re.sub(r'\[([^\]]*)\]\(([^)]*)\)\{\.(\w+)\}', r'<a class="\3" href="\2">\1</a>', text)
    text = re.sub(r'(?m)^(#+) (.*?) \{#(.*)\}$', lambda m: f'<h{len(m[1])} id="{m[3]}">{m[2]}</h{len(m[1])}>\n', text)
    made = mistune.create_markdown(escape=False, plugins=['table', 'math', 'strikethrough'])(text)
    made = re.sub(r'(?s)<h([1-6])>(.*?)</h\1>', lambda m: f'<h{m[1]} id="{pandoc_id(m[2])}">{m[2]}</h{m[1]}>', made)
    return re.sub(r'(?:<p>)?KEPT(\d+)KEPT(?:</p>)?', lambda m: kept[int(m[1])], made)


def code_html(cell):
    "The source of a cell as Quarto shows it: not at all, folded, or open."
    options = dict(re.findall(r'(?m)^#\| *([\w-]+): *(.*)$', cell.source))
    source = re.sub(r'(?m)^#\|.*\n?', '', cell.source).strip()
    if options.get('echo') == 'false' or not source:
        return ''
    shown = f'<div class="sourceCode"><pre class="sourceCode"><code>{html.escape(source)}</code></pre></div>'
    if options.get('code-fold') == 'true':
        return f'<details class="code-fold"><summary>{options["code-summary"].strip(chr(34))}</summary>{shown}</details>'
    return shown


def output_html(output):
    "An output of a cell; Quarto prefers HTML, then Markdown, then pictures."
    if output.output_type == 'stream':
        return f'<div class="cell-output cell-output-stdout"><pre><code>{html.escape("".join(output.text))}</code></pre></div>'
    data = {kind: ''.join(text) for kind, text in output.get('data', {}).items()}
    shown = (data.get('text/html') or ('text/markdown' in data and markdown_html(data['text/markdown']))
             or f'<pre><code>{html.escape(data.get("text/plain", ""))}</code></pre>')
    return f'<div class="cell-output cell-output-display">{shown}</div>'


STYLE = '''
body { font: 17px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 12px; max-width: 680px; overflow-wrap: normal; }
pre { font-size: 14.9px; line-height: 1.43; margin: 0 0 1rem; padding: 0.4em; overflow: auto; }
pre.sourceCode code, pre code[class*=language-] { white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: monospace; } p code { font-size: 14.9px; }
h1 { font-size: 2rem; } h2 { font-size: 1.65rem; margin: 2rem 0 1rem; } h3 { font-size: 1.42rem; }
table { font-size: 0.95rem; border-collapse: collapse; } td, th { padding: 0.5rem; text-align: left; vertical-align: top; }
img { max-width: 100%; height: auto; }
'''


def page_html(notebook, dark=False):
    "A page without what is around it: title, cells, outputs, in a column as wide as Quarto's."
    first, title = notebook.cells[0].source, ''
    if notebook.cells[0].cell_type == 'raw':
        title = f'<h1>{html.escape(re.search("(?m)^title: (.*)$", first)[1])}</h1>'
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == 'markdown':
            parts.append(markdown_html(cell.source))
        elif cell.cell_type == 'code':
            parts.append('<div class="cell">' + code_html(cell) + ''.join(map(output_html, cell.outputs)) + '</div>')
    theme = 'quarto-dark' if dark else 'quarto-light'
    colours = 'background: #222; color: #fff' if dark else 'background: #fff; color: #373a3c'
    css = (ROOT / 'nbs/styles.css').read_text('utf-8')
    return (f'<!doctype html><html lang="en-GB"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<style>{STYLE}{css}</style><body class="{theme}" style="{colours}"><main>{title}{"".join(parts)}</main></body>')
