import click
@click.command()
def cache() -> None:
    """x"""
