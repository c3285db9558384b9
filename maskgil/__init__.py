"""A notebook-driven reproducibility study of masked autoregressive image generation."""

__version__ = "0.1.0"


def __getattr__(name: str):
    "Import the pipeline when it is first asked for, so that `import maskgil` stays light."
    if name == 'MaskGILPipeline':
        from maskgil.pipeline import MaskGILPipeline
        return MaskGILPipeline
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
