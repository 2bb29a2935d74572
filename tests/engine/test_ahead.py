"Calls that threads make before somebody asks for their results."
import gc
import subprocess
import sys
import threading
import time

import pytest

from conftest import wait_until
from finetune_teach.engine.ahead import Ahead


def calls(numbers, function): return {n: lambda n=n: function(n) for n in numbers}


def test_calls_are_made_in_order_before_anybody_asks_and_once():
    ahead, made = Ahead(1), []
    some = calls(range(20), lambda n: made.append(n) or -n)
    ahead.begin(some)
    ahead.begin(some)
    wait_until(lambda: len(made) == 20)
    assert made == list(range(20)) and len(ahead) == 20
    assert [ahead.take(n, some[n]) for n in range(20)] == [-n for n in range(20)] and len(made) == 20 and len(ahead) == 0


def test_threads_are_so_many_and_end():
    before = threading.active_count()
    ahead, now, most, lock = Ahead(3), [], [], threading.Lock()
    def work(n):
        with lock: now.append(n)
        most.append(len(now))
        time.sleep(.005)
        with lock: now.remove(n)
    for start in (0, 30):
        for n in range(start, start + 30): ahead.begin(calls([n], work))
        wait_until(lambda: len(most) == start + 30 and not ahead.threads)
    assert max(most) == 3
    wait_until(lambda: threading.active_count() == before)


def test_what_no_thread_has_begun_is_done_by_whoever_asks():
    ahead, gate, by = Ahead(1), threading.Event(), {}
    def work(n):
        by[n] = threading.current_thread()
        return gate.wait(10) if n == 0 else n
    some = calls(range(4), work)
    ahead.begin(some)
    wait_until(lambda: 0 in by)
    assert ahead.take(2, some[2]) == 2 and by[2] is threading.main_thread()
    assert ahead.take(9, lambda: 'never begun') == 'never begun'
    gate.set()
    assert ahead.take(0, some[0]) is True and by[0] is not threading.main_thread()
    wait_until(lambda: 3 in by)
    assert ahead.take(3, some[3]) == 3 and by.keys() == {0, 1, 2, 3}


def test_an_error_comes_to_whoever_asks():
    ahead = Ahead(1)
    some = calls(range(-1, 2), lambda n: 1 / n)
    ahead.begin(some)
    wait_until(lambda: not ahead.threads)
    with pytest.raises(ZeroDivisionError): ahead.take(0, some[0])
    assert ahead.take(1, some[1]) == 1 and ahead.take(-1, some[-1]) == -1


def test_what_is_forgotten_is_not_done():
    ahead, gate, made = Ahead(1), threading.Event(), []
    some = calls(range(50), lambda n: (made.append(n), gate.wait(10)))
    ahead.begin(some)
    wait_until(lambda: made == [0])
    ahead.forget(range(1, 60))
    gate.set()
    wait_until(lambda: not ahead.threads)
    assert made == [0] and len(ahead) == 1


def test_it_goes_with_its_last_user():
    ahead, gone = Ahead(2), threading.Event()
    class Big:
        def __del__(self): gone.set()
    ahead.begin({0: Big})
    wait_until(lambda: not ahead.threads)
    del ahead
    gc.collect()
    assert gone.is_set()


@pytest.mark.parametrize('end', ['', 'raise KeyboardInterrupt'])
def test_a_program_ends_though_calls_are_waiting(end):
    program = ('import time; from finetune_teach.engine.ahead import Ahead; ahead = Ahead(2)\n'
               'ahead.begin({n: lambda: time.sleep(.2) for n in range(200)})\n'
               f'print(time.time(), flush=True)\n{end}')
    ran = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
    assert time.time() - float(ran.stdout) < 5 and 'Fatal' not in ran.stderr
    assert ran.returncode == (-2 if end else 0) or ran.returncode == 130, ran.stderr
