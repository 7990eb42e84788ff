"""`manyfaces manifest VERB ...`: files for clusters, to read, change and apply."""

import typer

from manyfaces.train.cli.verbs import Verbs
from manyfaces.train.cli.wheels import wheels

app = typer.Typer(cls=Verbs)
app.command()(wheels)
