"""Windows has no `resource`, `fcntl`, `os.fork` and their kin: every module must import without them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featherweight

MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt", "readline", "posix"}
NAMES = {
    "os": {"fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "killpg", "mkfifo", "nice", "openpty", "uname"}
    | {"sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "sysconf", "ttyname", "getloadavg", "chown"}
    | {"O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "posix_fallocate", "fchmod"},
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD", "setitimer", "alarm"},
}

HIDE_AND_IMPORT = """
import importlib, os, pkgutil, signal, sys
import featherweight

# The libraries below care for Windows themselves, by asking which system it is.
import accelerate, datasets, matplotlib.figure, peft, psutil, torch, transformers

for name in modules:
    sys.modules[name] = None
for module, hidden in names.items():
    for name in hidden:
        vars(sys.modules[module]).pop(name, None)

imported, failed = 0, []
for info in pkgutil.walk_packages(featherweight.__path__, "featherweight."):
    if info.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(info.name)
        imported += 1
    except ImportError as error:
        # An extra that is not installed is no matter of the system.
        if (error.name or "").split(".")[0] in {*modules, "featherweight"} or error.name is None:
            failed.append(f"{info.name}: {error}")
    except AttributeError as error:
        failed.append(f"{info.name}: {error}")
print(imported, failed)
"""


def at_import(tree):
    """Yield the nodes that run when a module is imported: all but the bodies of functions and lambdas."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults, *(one for one in node.args.kw_defaults if one)]
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def only_unix_has(node):
    if isinstance(node, ast.Import):
        return any(alias.name in MODULES for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        hidden = NAMES.get(node.module or "", set())
        return node.module in MODULES or any(alias.name in hidden for alias in node.names)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr in NAMES.get(node.value.id, set())
    return False


def test_no_module_asks_at_its_import_for_what_only_unix_has():
    root = Path(featherweight.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(root.rglob("*.py"))
        for node in at_import(ast.parse(path.read_text(encoding="utf-8")))
        if only_unix_has(node)
    ]
    assert not found


@pytest.mark.slow  # 14 s of a processor: every library is imported
def test_every_module_imports_without_what_only_unix_has():
    # Mutation: `import fcntl` at the head of any module, or `os.sysconf(...)` in a default of one.
    program = f"modules, names = {MODULES}, {NAMES}\n{HIDE_AND_IMPORT}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported, _, failed = done.stdout.splitlines()[-1].partition(" ")
    assert failed == "[]" and int(imported) > 200
