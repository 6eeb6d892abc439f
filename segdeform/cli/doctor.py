"""`segdeform doctor`: does everything work here, and which command mends what does not?"""

from __future__ import annotations

from dataclasses import asdict

from segdeform.cli.output import Json, print_json
from segdeform.errors import PartialFailureError

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "failed": "[red]failed[/]"}


def doctor(json_output: Json = False) -> None:
    """Check versions, devices and kernels; name the command that mends what is wrong."""
    from segdeform.machine.doctor import examine

    checks = list(examine())
    failed = sum(check.state == "failed" for check in checks)
    if json_output:
        print_json({"healthy": not failed, "checks": [asdict(check) for check in checks]})
    else:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(show_header=False, box=box.SIMPLE, padding=(0, 1, 0, 0))
        for check in checks:
            table.add_row(_MARKS[check.state], check.name, escape(check.detail))
        console = Console()
        console.print(table, highlight=False)
        for check in checks:  # apart from the table, which would break a command to be copied
            if check.mend:
                line = f"to mend {check.name}: {check.mend}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise PartialFailureError(f"{failed} of {len(checks)} checks failed")
