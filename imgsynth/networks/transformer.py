"""A causal transformer over the codes of an image: the prior that makes a VQ-VAE generate."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgsynth.describe import Described
from imgsynth.networks.blocks import ConditionalLatent, known_classes


class _Block(nn.Module):
    """Self-attention and an MLP, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: Tensor | None = None, place: int = 0) -> Tensor:
        """Return ``(B, n, width)``.

        Args:
            x: ``(B, n, width)``; with a cache ``n`` is 1.
            cache: ``(2, B, heads, num_tokens, width / heads)``: keys and values of the places
                before; those of this place are added to it.
            place: That of ``x`` if there is a cache.
        """
        qkv = self.to_qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[:, :, :, place] = torch.stack([k, v]).squeeze(3).to(cache.dtype)
            k, v = cache[:, :, :, : place + 1].to(q.dtype)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=cache is None)
        x = x + self._dropped(self.project(mixed.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.expand(self.norm_mlp(x)))
        return x + self._dropped(self.contract(hidden))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class CodeTransformer(Described, nn.Module):
    """The distribution of a sequence of codes: each given the class and the codes before it.

    The codes of an image are read row by row. At the first place, which no code precedes,
    stands the embedding of the class if there are classes. Positions are learnt.

    Args:
        num_codes: Codes to choose from: ``quantizer.num_codes``.
        num_tokens: Places of an image: the ``h * w`` of its map of codes.
        num_classes: Classes; None or 0 makes an unconditional prior.
        width: Length of the hidden vectors.
        depth: Blocks of attention and MLP.
        heads: Heads of attention; they divide ``width``.
        dropout: Probability that an activation is dropped in training: of embeddings, attention
            and residuals.

    Raises:
        ValueError: If ``num_codes`` or ``num_tokens`` is missing, or a number is out of range.

    Source:
        Vaswani et al. 2017, "Attention Is All You Need"; Radford et al. 2019, "Language Models are
        Unsupervised Multitask Learners", section 2.3 (normalised first, start of the weights);
        Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.2
        (as a prior of codes).

    Example:
        >>> prior = CodeTransformer(num_codes=16, num_tokens=4, width=8, depth=1, heads=2)
        >>> prior(torch.zeros(3, 4, dtype=torch.int64)).shape
        torch.Size([3, 4, 16])
        >>> prior.sample(torch.rand(3, 4)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        num_codes: int | None = None,
        num_tokens: int | None = None,
        num_classes: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_codes is None or num_tokens is None or num_codes < 1 or num_tokens < 1:
            raise ValueError(
                "CodeTransformer needs num_codes (of the quantiser) and num_tokens (places of an "
                f"image's map of codes, h * w), got {num_codes} and {num_tokens}; for example "
                "num_codes=512, num_tokens=64."
            )
        if depth < 1 or heads < 1 or width < 1 or width % heads:
            raise ValueError(
                "CodeTransformer: depth must be at least 1 and heads must divide width, got "
                f"depth={depth}, heads={heads}, width={width}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(
                f"CodeTransformer: dropout must be at least 0 and below 1, got {dropout}."
            )
        self.num_codes = num_codes
        self.num_tokens = num_tokens
        self.num_classes = known_classes(num_classes, "CodeTransformer")
        self.start = ConditionalLatent(0, self.num_classes, class_dim=width)
        self.tokens = nn.Embedding(num_codes, width) if num_tokens > 1 else None
        self.positions = nn.Parameter(torch.empty(num_tokens, width))
        self.dropout = nn.Dropout(dropout)
        self._kept = (heads, num_tokens, width // heads)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes, bias=False)
        self._initialise()

    def forward(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what the prior expects at each place, given the codes before it.

        Args:
            indices: ``(B, num_tokens)`` int64, row by row. The last one of each row decides
                nothing.
            labels: ``(B,)`` int64, exactly if the prior is conditional.

        Returns:
            Logits ``(B, num_tokens, num_codes)``.

        Raises:
            ValueError: If shapes or labels do not fit.
        """
        if indices.ndim != 2 or indices.shape[1] != self.num_tokens:
            raise ValueError(
                f"CodeTransformer was built for (B, {self.num_tokens}) indices, got "
                f"{tuple(indices.shape)}; build it with num_tokens = h * w of the encoder's map, "
                "and flatten the map."
            )
        x = self._first(labels, len(indices))
        if self.tokens is not None:
            x = torch.cat([x, self.tokens(indices[:, :-1])], 1)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self._logits(x)

    @torch.no_grad()
    def sample(self, uniforms: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draw codes one after another, each by the inverse of its cumulative distribution.

        Keys and values of earlier places are kept, so that each place costs one step.

        Args:
            uniforms: ``(B, num_tokens)``, uniform in [0, 1): all the randomness there is.
            labels: ``(B,)`` int64, exactly if the prior is conditional.

        Returns:
            Indices ``(B, num_tokens)`` int64.

        Raises:
            ValueError: If shapes or labels do not fit.
        """
        if uniforms.ndim != 2 or uniforms.shape[1] != self.num_tokens:
            raise ValueError(
                f"CodeTransformer draws {self.num_tokens} codes an image from uniforms of shape "
                f"(B, {self.num_tokens}), got {tuple(uniforms.shape)}."
            )
        x = self._first(labels, len(uniforms))
        cache = self.empty_cache(len(uniforms))
        drawn: list[Tensor] = []
        for place, uniform in enumerate(uniforms.float().unbind(1)):
            if drawn and self.tokens is not None:
                x = self.tokens(drawn[-1])[:, None]
            logits = self.step(x, cache, place)
            cumulative = logits.float().softmax(1).cumsum(1)
            # up to the last sum, which is 1 but for rounding
            wanted = (uniform[:, None] * cumulative[:, -1:]).contiguous()
            index = torch.searchsorted(cumulative, wanted, right=True).squeeze(1)
            drawn.append(index.clamp(max=self.num_codes - 1))
        return torch.stack(drawn, 1)

    def empty_cache(self, num: int) -> Tensor:
        """Return room for the keys and values of ``num`` sequences, for :meth:`step`."""
        return self.positions.new_zeros(len(self.blocks), 2, num, *self._kept)

    def step(self, x: Tensor, cache: Tensor, place: int) -> Tensor:
        """Return the logits ``(B, num_codes)`` of one place, and keep its keys and values.

        Without gradients, as the cache is written in place.

        Args:
            x: ``(B, 1, width)``: the embedding of the code before, at the first place of the
                class.
            cache: Of :meth:`empty_cache`, filled for the places before; it is changed.
            place: Its number, from 0.
        """
        x = self.dropout(x + self.positions[place])
        for block, kept in zip(self.blocks, cache, strict=True):
            x = block(x, kept, place)
        return self._logits(x).squeeze(1)

    def _first(self, labels: Tensor | None, num: int) -> Tensor:
        """Return ``(num, 1, width)``: each one's class, or zeros where there are none."""
        start: Tensor = self.start(self.positions.new_zeros(num, 0), labels)
        return F.pad(start, (0, self.positions.shape[1] - self.start.out_features))[:, None]

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _initialise(self) -> None:
        """Normal with 0.02; what is added to the residual stream smaller with its number."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.02)
        for block in self.blocks:
            assert isinstance(block, _Block)
            for layer in (block.project, block.contract):
                nn.init.normal_(layer.weight, std=0.02 * (2 * len(self.blocks)) ** -0.5)
