"""What diffusers runs when it opens a folder of MaskGIL's: `pip install 'maskgil[diffusers]'` has all there is to it.

A copy of this file lies in every saved folder; maskgil itself never runs it.
"""
import maskgil.diffusion


class MaskGILDiffusionPipeline(maskgil.diffusion.FolderPipeline):
    "The folder that this file lies in, drawn by diffusers."
