"""An OpenVINO model with int4 or int8 weights from a Hugging Face folder: FOLDER OUT BITS.

By optimum-intel and nncf, with groups of 32 at int4 as the other sides have; no tokenizer.
"""

import sys

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

folder, out, bits = sys.argv[1:]
how = {"sym": True, "group_size": 32, "ratio": 1.0, "all_layers": True} if bits == "4" else {}
model = OVModelForCausalLM.from_pretrained(
    folder,
    export=True,
    compile=False,
    quantization_config=OVWeightQuantizationConfig(bits=int(bits), **how),
)
model.save_pretrained(out)
