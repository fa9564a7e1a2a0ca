"""`UNet2DModel` of Hugging Face's diffusers as our U-Net, from its configuration and tensors; the
package itself is not needed."""

from kdgen.foreign.diffusers.architecture import Foreign, Unsupported, read
from kdgen.foreign.diffusers.folder import denoiser
from kdgen.foreign.diffusers.live import net, recognised
from kdgen.foreign.diffusers.weights import exported

__all__ = ["Foreign", "Unsupported", "denoiser", "exported", "net", "read", "recognised"]
